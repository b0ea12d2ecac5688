"""K-quantised files against those of llama.cpp's `llama-quantize`, which is not at hand where tests run: the hashes of what it
makes are in llama_quantize.json, with the commands that made them."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from app.jobs.spec import BUILT_IN_MODEL, JobSpec
from app.jobs.states import Stage
from worker.data import base_models
from worker.exports.ggml import BF16, F32
from worker.exports.gguf_header import Header, Slot, placed, read_header
from worker.exports.merged import KEY_PREFIX, LORA_A, LORA_B
from worker.exports.mixtures import mixed
from worker.settings import CONVERTER_DIR
from worker.stages import Inputs, Report
from worker.stages.convert import run

REFERENCE = json.loads(Path(__file__).with_name("llama_quantize.json").read_text())


def describe(path: Path) -> dict:
    """How many tensors there are of each type, and one hash of all their names, types, shapes and bytes."""
    header, data = read_header(path), path.read_bytes()
    start = len(header.to_bytes())
    digest = hashlib.sha256()
    for slot in header.slots:
        digest.update(json.dumps([slot.name, slot.kind.name, slot.shape]).encode())
        digest.update(data[start + slot.offset : start + slot.offset + slot.bytes])
    return {"types": dict(sorted(Counter(slot.kind.name for slot in header.slots).items())), "sha256": digest.hexdigest()}


@pytest.mark.ml
def test_the_built_in_models_files_are_those_of_llama_quantize(tmp_path):
    cache = tmp_path / "cache"
    base_models.fetch(BUILT_IN_MODEL, None, cache_dir=cache, models_dir=None, report=lambda *_, **__: None)
    (tmp_path / "adapter").mkdir()
    module = f"{KEY_PREFIX}model.layers.0.self_attn.q_proj"
    nothing = {module + LORA_A: torch.zeros(1, 576), module + LORA_B: torch.zeros(576, 1)}  # so that no sum depends on the CPU
    save_file(nothing, tmp_path / "adapter/adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "use_rslora": False}
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(config))
    exports = [{"kind": "gguf", "quantization": quantization} for quantization in REFERENCE["files"]]
    inputs = Inputs(
        cache_dir=cache,
        models_dir=None,
        converter_dir=CONVERTER_DIR,
        title="Parity",
        folders={Stage.TRAIN: tmp_path, Stage.PREPARE: tmp_path},
        values={Stage.PREPARE: {"base_model": {"revision": None}}},
    )
    spec = JobSpec(base_model=BUILT_IN_MODEL, dataset={"file": "file-1"}, exports=exports)
    outcome = run(spec, inputs, tmp_path, Report(tmp_path / "events.jsonl"))
    found = {name: describe(tmp_path / file.path) for name, file in zip(REFERENCE["files"], outcome.files, strict=True)}
    assert found == REFERENCE["files"]


def text_field(text: str) -> bytes:
    return (8).to_bytes(4, "little") + len(text).to_bytes(8, "little") + text.encode()


def number_field(number: int) -> bytes:
    return (4).to_bytes(4, "little") + number.to_bytes(4, "little")


def header_of(layers: int, width: int, *, tied: bool) -> Header:
    names = ["token_embd.weight", *([] if tied else ["output.weight"])]
    parts = ("attn_v", "attn_output", "ffn_down", "ffn_up")
    names += [f"blk.{layer}.{part}.weight" for layer in reversed(range(layers)) for part in parts]
    slots = [Slot(name, (512, width), BF16) for name in names] + [Slot("output_norm.weight", (width,), F32)]
    fields = {"general.architecture": text_field("llama"), "general.file_type": number_field(32)}
    return Header(fields | {"llama.block_count": number_field(layers)}, placed(slots))


def test_the_outer_eighths_and_every_third_layer_between_keep_six_bits():
    slots = {slot.name: slot.kind.name for slot in mixed(header_of(16, 256, tied=True), "q4_k_m").slots}
    for part in ("attn_v", "ffn_down"):
        better = [layer for layer in range(16) if slots[f"blk.{layer}.{part}.weight"] == "Q6_K"]
        assert better == [0, 1, 4, 7, 10, 13, 14, 15]
    assert {slots[f"blk.{layer}.ffn_up.weight"] for layer in range(16)} == {"Q4_K"}
    assert (slots["token_embd.weight"], slots["output_norm.weight"]) == ("Q6_K", "F32")


@pytest.mark.parametrize(
    ("quantization", "width", "expected"),
    [
        ("q4_k_m", 256, {"output": "Q6_K", "token_embd": "Q4_K", "blk.2.ffn_up": "Q4_K", "blk.0.ffn_down": "Q6_K"}),
        ("q5_k_m", 256, {"output": "Q6_K", "token_embd": "Q5_K", "blk.2.ffn_up": "Q5_K", "blk.7.attn_v": "Q6_K"}),
        ("q6_k", 256, {"output": "Q6_K", "token_embd": "Q6_K", "blk.2.ffn_up": "Q6_K", "blk.0.attn_v": "Q6_K"}),
        ("q4_k_m", 288, {"output": "Q8_0", "token_embd": "Q5_0", "blk.2.ffn_up": "Q5_0", "blk.7.attn_v": "Q8_0"}),
        ("q5_k_m", 288, {"output": "Q8_0", "token_embd": "Q5_1", "blk.2.ffn_up": "Q5_1", "blk.7.attn_v": "Q8_0"}),
        ("q4_k_m", 300, {"output": "F16", "token_embd": "F16", "blk.2.ffn_up": "F16"}),
    ],
)
def test_rows_that_fill_no_block_fall_back(quantization, width, expected):
    header = mixed(header_of(8, width, tied=False), quantization)
    slots = {slot.name: slot.kind.name for slot in header.slots}
    assert {name: slots[f"{name}.weight"] for name in expected} == expected
    assert list(slots)[:3] == ["output.weight", "output_norm.weight", "token_embd.weight"]
    assert list(header.fields)[-2:] == ["general.quantization_version", "general.file_type"]
