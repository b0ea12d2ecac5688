"""The adapter alone as a GGUF: its tensors, and what llama.cpp makes of it on the base model's file."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file
from tiny_export import SIZES, make_inputs, save_adapter, save_base
from transformers import LlamaConfig

from app.jobs.spec import JobSpec
from worker.data.gguf_weights import read_gguf
from worker.stages import Report
from worker.stages.convert import run as convert
from worker.verification.llama import Adapted, Llama

HEADS = {"attn_q": 4, "attn_k": 2}
PARTS = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj"}
PARTS |= {"attn_output": "self_attn.o_proj"} | {f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")}


def interleave(matrix: np.ndarray, part: str) -> np.ndarray:
    """llama.cpp has the two halves of a head of q and k interleaved."""
    if part not in HEADS:
        return matrix
    return matrix.reshape(HEADS[part], 2, -1, matrix.shape[1]).swapaxes(1, 2).reshape(matrix.shape)


def write_base(base: Path, merged: Path, into: Path) -> None:
    """The base model's file: the merged model's with the base's matrices."""
    shutil.copyfile(merged, into)
    weights = load_file(base / "model.safetensors")
    for tensor in GGUFReader(into, "r+").tensors:
        _, _, name = tensor.name.partition("blk.")
        layer, _, part = name.removesuffix(".weight").partition(".")
        if part in PARTS:
            tensor.data[:] = interleave(weights[f"model.layers.{layer}.{PARTS[part]}.weight"].numpy(), part)


def ask(llama: Llama) -> np.ndarray:
    with llama:
        [logits] = (np.array(found) for found in llama.logits([np.arange(100, 140, dtype=np.int32)]))
    return logits


@pytest.mark.ml
def test_the_adapter_on_the_base_models_file_is_the_merged_model(built_in, tmp_path):
    config = LlamaConfig(**SIZES, vocab_size=49152, bos_token_id=1, eos_token_id=2)
    base = save_base(tmp_path, built_in, config, torch.float16, "1GB")
    trained = save_adapter(base, tmp_path / "train", use_rslora=True)
    exports = [{"kind": "lora_gguf", "type": kind} for kind in ("f32", "f16")] + [{"kind": "gguf", "quantization": "f16"}]
    spec = JobSpec(base_model="tiny", dataset={"file": "file-1"}, exports=exports)
    exact, halved, merged = convert(spec, make_inputs(tmp_path, trained), tmp_path, Report(tmp_path / "events.jsonl")).files
    assert exact.name == "lora_gguf/Parity-lora-f32.gguf"

    metadata, tensors = read_gguf(tmp_path / exact.path)
    kind, alpha = (metadata["general.type"], metadata["adapter.type"]), metadata["adapter.lora.alpha"]
    assert (kind, alpha) == (("adapter", "lora"), 6 * 4**0.5)
    factors = load_file(trained / "adapter/adapter_model.safetensors")
    assert len(tensors) == len(factors)
    for part in ("attn_q", "attn_k", "ffn_up"):
        a, b = (factors[f"base_model.model.model.layers.2.{PARTS[part]}.lora_{half}.weight"].numpy() for half in "AB")
        for name, expected in (("lora_a", a), ("lora_b", interleave(b, part))):
            tensor = tensors[f"blk.2.{part}.weight.{name}"]
            assert np.array_equal(tensor.raw.view(np.float32).reshape(tensor.shape), expected), part

    file = tmp_path / "base.gguf"
    write_base(base, tmp_path / merged.path, file)
    expected, alone = ask(Llama(tmp_path / merged.path)), ask(Llama(file))
    change = np.abs(alone - expected).mean()
    for adapter in (exact, halved):
        found = ask(Adapted(file, tmp_path / adapter.path))
        assert np.abs(found - expected).mean() < change / 100
