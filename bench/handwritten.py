"""The same fine-tune as a person writes it by hand: one process, TRL, peft, bitsandbytes, then llama.cpp's converter.

usage: handwritten.py MODEL_DIR DATA.jsonl JOB.json OUT_DIR

The peer of bench/overhead.py. It reads the same job file and does the same work: 4-bit base, LoRA on all linear layers,
assistant-only loss, packing, merge onto the 16-bit base, adapter, merged folder and GGUF.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

ROLES = {"system": "system", "human": "user", "gpt": "assistant"}
TRAINING_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endif %}{% endfor %}"
)

model_dir, data, job, out = (Path(argument) for argument in sys.argv[1:5])
spec = json.loads(job.read_text())
training, lora = spec["training"], spec.get("lora", {})

tokenizer = AutoTokenizer.from_pretrained(model_dir)
own_template, tokenizer.chat_template = tokenizer.chat_template, TRAINING_TEMPLATE
rows = [json.loads(line) for line in data.read_text().splitlines()][: spec["dataset"].get("max_samples")]
messages = [[{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in row["conversations"]] for row in rows]

quantization = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32
)
model = AutoModelForCausalLM.from_pretrained(
    model_dir, quantization_config=quantization, dtype=torch.float32, device_map={"": "cpu"}, attn_implementation="sdpa"
)
trainer = SFTTrainer(
    model=model,
    processing_class=tokenizer,
    train_dataset=Dataset.from_dict({"messages": messages}),
    peft_config=LoraConfig(r=lora.get("r", 16), lora_alpha=lora.get("alpha", 16), target_modules="all-linear"),
    args=SFTConfig(
        output_dir=str(out / "trainer"),
        max_steps=training["max_steps"],
        per_device_train_batch_size=training.get("batch_size", 2),
        gradient_accumulation_steps=training.get("gradient_accumulation", 4),
        learning_rate=training["learning_rate"],
        warmup_steps=min(training.get("warmup_steps", 5), training["max_steps"] // 10),
        lr_scheduler_type=training.get("scheduler", "linear"),
        weight_decay=0.01,
        max_length=training["max_seq_length"],
        optim="adamw_torch",
        packing=True,
        assistant_only_loss=True,
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        seed=3407,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    ),
)
trainer.train()
trainer.save_model(str(out / "adapter"))
del trainer, model

base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16)
merged = PeftModel.from_pretrained(base, str(out / "adapter")).merge_and_unload()
merged.save_pretrained(out / "merged")
tokenizer.chat_template = own_template
tokenizer.save_pretrained(out / "merged")

converter = Path(os.environ["CONVERTER_DIR"])
subprocess.run(
    [sys.executable, converter / "convert_hf_to_gguf.py", out / "merged", "--outtype", "q8_0", "--outfile", out / "model.gguf"],
    env=os.environ | {"PYTHONPATH": str(converter)},
    check=True,
)
