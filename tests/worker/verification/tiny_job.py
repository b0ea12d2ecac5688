"""A tiny Llama with an adapter, the files that a job would have made of them, and the stage `verify` over all that.

The GGUF is written here, by the rules of llama.cpp's converter for a Llama, so that a test can plant a fault in any of them.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tiny_tokenizer import make_tokenizer

from app.jobs.spec import JobSpec
from app.settings import MOST_KL
from worker.data.base_models import BaseModel
from worker.data.encoded_sets import make_encoder
from worker.data.formats.turns import Conversation
from worker.data.plan import Document, write_plan
from worker.data.spool import Spool
from worker.stages import Inputs, Outcome, Report
from worker.stages.verify import run

WIDTH, HEADS, KV_HEADS, LAYERS, RANK, ALPHA = 64, 4, 2, 2, 4, 8
TITLE = "tiny"
STOP = "<|im_end|>"
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
ROWS = [
    ("What is it?", "It is a lazy dog."),
    ("the quick brown fox", "jumps over the lazy dog"),
    ("0123456789", "What is 0123456789?"),
    ("system user assistant", "dog dog dog dog dog"),
] * 4


def save_base(folder: Path, **tokenizer: Any) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    stop = tokenizer.pop("stop", STOP)
    made = make_tokenizer(**tokenizer)
    if stop != STOP:
        made = rename_stop(made, stop)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 128, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    config = LlamaConfig(**sizes, num_key_value_heads=KV_HEADS, vocab_size=len(made), max_position_embeddings=256)
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.1)
    model.to(torch.bfloat16).save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def rename_stop(tokenizer: Any, stop: str) -> Any:
    """The tokenizer whose answers end with a token that is not its EOS."""
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", stop]})
    tokenizer.chat_template = tokenizer.chat_template.replace(STOP, stop)
    return tokenizer


def save_adapter(folder: Path, base: Path, *, std: float) -> Path:
    """On every matrix of the layers; `std` is of both its factors."""
    torch.manual_seed(1)
    tensors = {}
    for name, weight in load_file(base / "model.safetensors").items():
        if weight.dim() == 2 and ".layers." in name:
            key = "base_model.model." + name.removesuffix(".weight")
            tensors[f"{key}.lora_A.weight"] = torch.randn(RANK, weight.shape[1]) * std
            tensors[f"{key}.lora_B.weight"] = torch.randn(weight.shape[0], RANK) * std
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "use_rslora": False, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@dataclass
class Planted:
    """What is written of the model, for a test to change before it is written."""

    weights: dict[str, torch.Tensor]
    permutes: bool = True
    fields: dict[str, Any] = field(default_factory=dict)


def merge(base: Path, adapter: Path, times: float = 1.0) -> dict[str, torch.Tensor]:
    weights, tensors = load_file(base / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    for name in weights:
        key = "base_model.model." + name.removesuffix(".weight")
        if f"{key}.lora_A.weight" in tensors:
            delta = tensors[f"{key}.lora_B.weight"] @ tensors[f"{key}.lora_A.weight"] * (times * ALPHA / RANK)
            weights[name] = weights[name] + delta.to(torch.bfloat16)
    return weights


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """The rows that the rotary embedding turns together, side by side."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(path: Path, base: Path, planted: Planted) -> None:
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"] | {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    special = {token["id"] for token in tokenizer["added_tokens"]}
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    config = json.loads((base / "config.json").read_text())
    fields: dict[str, Any] = {
        "llama.context_length": 256,
        "llama.embedding_length": WIDTH,
        "llama.block_count": LAYERS,
        "llama.feed_forward_length": 128,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "llama.rope.dimension_count": WIDTH // HEADS,
        "llama.rope.freq_base": config["rope_parameters"]["rope_theta"],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if index in special else 1 for index in range(len(tokens))],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in tokenizer["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": vocabulary["<s>"],
        "tokenizer.ggml.eos_token_id": vocabulary["<|im_end|>"],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": template.read_text() if (template := base / "chat_template.jinja").exists() else None,
    } | planted.fields
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in fields.items():
        if value is not None:
            add_field(writer, key, value)
    for name, weight in planted.weights.items():
        array = weight.float().numpy()
        if planted.permutes and ".q_proj." in name:
            array = permute(array, HEADS)
        if planted.permutes and ".k_proj." in name:
            array = permute(array, KV_HEADS)
        writer.add_tensor(gguf_name(name), array.astype(np.float16 if array.ndim == 2 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_lora_gguf(path: Path, adapter: Path, *, alpha: float = ALPHA, permutes: bool = True, lost: str | None = None) -> None:
    """`lost` is the part whose factors are left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for name, factor in load_file(adapter / "adapter_model.safetensors").items():
        module, _, half = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".lora_")
        array = factor.numpy()
        if permutes and half == "B" and module.endswith(("q_proj", "k_proj")):
            array = permute(array, HEADS if module.endswith("q_proj") else KV_HEADS)
        if lost is None or not module.endswith(lost):
            writer.add_tensor(f"{gguf_name(f'{module}.weight')}.lora_{half.lower()}", np.ascontiguousarray(array, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_field(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    add: dict[type, Callable] = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    add.get(type(value), writer.add_array if isinstance(value, list) else writer.add_string)(key, value)


def gguf_name(name: str) -> str:
    if ".layers." not in name:
        names = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm", "lm_head.weight": "output"}
        return f"{names[name]}.weight"
    _, _, number, part = name.removesuffix(".weight").split(".", 3)
    return f"blk.{number}.{NAMES[part]}.weight"


class TinyJob:
    """A job up to `convert`; `verify` runs the stage over it."""

    def __init__(self, folder: Path, *, std: float = 0.05, **tokenizer: Any):
        self.folder, self.form = folder, "messages"
        self.base = save_base(folder / "models" / "tiny", **tokenizer)
        self.adapter = save_adapter(folder / "train" / "adapter", self.base, std=std)
        self.gguf = folder / "convert" / "gguf" / f"{TITLE}-f16.gguf"
        self.lora = folder / "convert" / "lora_gguf" / f"{TITLE}-lora-f16.gguf"
        self.spec = JobSpec.model_validate(
            {"base_model": "tiny", "dataset": {"file": "file-1"}, "exports": [{"kind": "gguf", "quantization": "f16"}]}
        )
        self.prepare()

    def prepare(self) -> None:
        encoder = make_encoder(BaseModel("tiny", "r", self.base), self.spec)
        rows = [[{"role": "user", "content": ask}, {"role": "assistant", "content": answer}] for ask, answer in ROWS]
        encoded = [documents[0] for documents in encoder.encode([Conversation(turns) for turns in rows])]
        prepared = self.folder / "prepare"
        documents = [Document(item.input_ids, item.trained) for item in encoded]
        write_plan(prepared / "plan", Spool.of(self.folder / "spool", documents), max_seq_length=256, packing=True, seed=1)
        (self.folder / "rows.jsonl").write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in rows))

    def write(self, plant: Callable[[Planted], None] = lambda planted: None, *, times: float = 1.0) -> None:
        planted = Planted(merge(self.base, self.adapter, times))
        plant(planted)
        write_gguf(self.gguf, self.base, planted)

    def write_merged(self, plant: Callable[[dict], object] = lambda weights: None, *, times: float = 1.0) -> None:
        merged = self.folder / "merge" / "merged"
        shutil.copytree(self.base, merged)
        weights = merge(self.base, self.adapter, times)
        plant(weights)
        save_file(weights, merged / "model.safetensors", {"format": "pt"})

    def verify(self, most_kl: float = MOST_KL["f16"]) -> Outcome:
        folders = {name: self.folder / name for name in ("prepare", "train", "merge", "convert")}
        out = self.folder / "out"
        out.mkdir(exist_ok=True)
        inputs = Inputs(
            cache_dir=self.folder,
            models_dir=self.folder / "models",
            converter_dir=self.folder,
            title=TITLE,
            file=self.folder / "rows.jsonl",
            filename="rows.jsonl",
            folders={name: folder for name, folder in folders.items() if folder.exists()},
            values={
                "prepare": {"base_model": {"revision": None}, "format": self.form},
                "convert": {
                    "files": [self.name],
                    "adapters": [self.lora_name] if self.lora.exists() else [],
                    "carrier": self.name,
                },
            },
            most_kl={"f16": most_kl},
        )
        return run(self.spec, inputs, out, Report(out / "events.jsonl"))

    def events(self, kind: str) -> list[dict[str, Any]]:
        events = map(json.loads, (self.folder / "out" / "events.jsonl").read_text().splitlines())
        return [event for event in events if event["kind"] == kind]

    @property
    def name(self) -> str:
        return f"gguf/{self.gguf.name}"

    @property
    def lora_name(self) -> str:
        return f"lora_gguf/{self.lora.name}"
