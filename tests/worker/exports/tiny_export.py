"""Small random models with the built-in model's tokenizer, adapters for them, and both ways from there to GGUF files."""

import shutil
import subprocess
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, PretrainedConfig

from app.jobs.spec import JobSpec
from app.jobs.states import Stage
from worker.stages import Inputs, Outcome, Report
from worker.stages.convert import run as convert
from worker.stages.merge import run as merge

CONVERTER = Path(sys.prefix) / "share/tunesmith/llama.cpp"
TITLE = "Parity"
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SIZES = {"hidden_size": 256, "intermediate_size": 288, "num_hidden_layers": 3, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 256}
LLAMA_3_ROPE = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA_3_ROPE |= {"original_max_position_embeddings": 128}


def save_base(models: Path, tokenizer: Path, config: PretrainedConfig, dtype: torch.dtype, shard: str) -> Path:
    """A small random model with the built-in model's tokenizer."""
    torch.manual_seed(1)
    base = models / "tiny"
    shutil.copytree(tokenizer, base, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    model.to(dtype).save_pretrained(base, max_shard_size=shard)
    return base


def save_adapter(base: Path, folder: Path, **settings) -> Path:
    torch.manual_seed(2)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = {"target_modules": LINEAR, "r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM"} | settings
    adapted = get_peft_model(model, LoraConfig(**config))
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and "magnitude" not in name:
            torch.nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(folder / "adapter")
    return folder


def make_inputs(models: Path, trained: Path, **more) -> Inputs:
    folders = {Stage.TRAIN: trained, Stage.PREPARE: trained.parent / "prepare"} | more.get("folders", {})
    values = {Stage.PREPARE: {"base_model": {"revision": None}}} | more.get("values", {})
    place = {"cache_dir": models, "models_dir": models, "converter_dir": CONVERTER}
    return Inputs(**place, title=TITLE, folders=folders, values=values)


def make_spec(*quantizations: str, base: str = "tiny") -> JobSpec:
    exports = [{"kind": "gguf", "quantization": quantization} for quantization in quantizations]
    return JobSpec(base_model=base, dataset={"file": "file-1"}, exports=exports)


def stream(models: Path, trained: Path, out: Path, *quantizations: str, base: str = "tiny") -> Outcome:
    out.mkdir()
    return convert(make_spec(*quantizations, base=base), make_inputs(models, trained), out, Report(out / "events.jsonl"))


def by_llama_cpp(models: Path, trained: Path, out: Path, *quantizations: str, base: str = "tiny") -> dict[str, bytes]:
    """The files by quantisation: a merged folder, and the converter as anybody would run it."""
    out.mkdir()
    merge(make_spec("f16", base=base), make_inputs(models, trained), out, Report(out / "events.jsonl"))
    files = {}
    for quantization in quantizations:
        path = out / f"{quantization}.gguf"
        run_converter(out / "merged", path, quantization)
        files[quantization] = path.read_bytes()
    return files


def run_converter(model: Path, path: Path, quantization: str) -> None:
    command = [sys.executable, CONVERTER / "convert_hf_to_gguf.py", "--outfile", path, "--outtype", quantization]
    environment = {"PYTHONPATH": str(CONVERTER), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--model-name", TITLE, model], env=environment, check=True, capture_output=True)
