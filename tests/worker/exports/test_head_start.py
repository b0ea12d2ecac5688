"""What is made before the converter has answered changes nothing in the files, and is thrown away where it does not fit."""

import json
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from worker.exports import gguf_writing, head_start
from worker.exports.floats import as_bytes, narrowed
from worker.exports.ggml import BF16, F16, Q8_0, Kind
from worker.exports.gguf_header import Header, Slot, placed
from worker.exports.gguf_writing import Blocks, Contents, Matrix, Target
from worker.exports.merged import KEY_PREFIX, LORA_A, LORA_B, Adapter, Merger
from worker.exports.shards import Entry, read_entries, write_shard
from worker.stages import StageFailure

SHAPES = {"up_proj.weight": (1200, 512), "q_proj.weight": (64, 512), "narrow.weight": (8, 48), "norm.weight": (512,)}


def make_model(folder: Path, size: float = 0.01) -> Merger:
    """Random weights, and a change to `up_proj`."""
    generator = np.random.default_rng(0)
    weights = {name: generator.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}
    save(folder / "model.safetensors", "BF16", {name: narrowed(array, "BF16") for name, array in weights.items()})
    halves = {LORA_A: generator.standard_normal((4, 512), np.float32), LORA_B: np.full((1200, 4), size, np.float32)}
    save(folder / "adapter_model.safetensors", "F32", {f"{KEY_PREFIX}up_proj{half}": array for half, array in halves.items()})
    (folder / "adapter_config.json").write_text(json.dumps({"lora_alpha": 4, "use_rslora": False}))
    return Merger({folder / "model.safetensors": read_entries(folder / "model.safetensors")}, Adapter.at(folder))


def save(path: Path, dtype: str, arrays: dict[str, np.ndarray]) -> None:
    entries = [Entry(name, dtype, array.shape, 0, array.nbytes) for name, array in arrays.items()]
    write_shard(path, entries, [as_bytes(array) for array in arrays.values()])


def write(model: Merger, path: Path, kinds: list[Kind], early: Blocks, *, turned: bool = False) -> str:
    names = ["q_proj.weight", "up_proj.weight"]
    contents: Contents = {}
    for shard, entries in model.shards.items():
        for entry in entries:
            contents[entry.name] = Matrix(shard, entry, np.arange(entry.rows) ^ 1 if turned else None)
    slots = placed([Slot(name, SHAPES[name], kind) for name, kind in zip(names, kinds, strict=True)])
    [digest] = gguf_writing.write([Target(path, Header({}, slots))], contents, model, lambda done, total: None, early)
    return digest


def collect(model: Merger, kinds: list[Kind]) -> Blocks:
    blocks: Blocks = {}
    head_start.collect(blocks, model, kinds, Event())
    return blocks


def test_files_are_the_same_and_what_is_ready_is_taken(tmp_path):
    model = make_model(tmp_path)
    early = collect(model, [Q8_0])
    assert {name for name, _, _ in early} == {"up_proj.weight"} and len(early) == 2
    expected = write(model, tmp_path / "a.gguf", [Q8_0, Q8_0], {})
    assert write(model, tmp_path / "b.gguf", [Q8_0, Q8_0], early) == expected and not early
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("kind", [F16, BF16, Q8_0])
def test_another_type_and_another_order_are_made_anew(tmp_path, kind, turned):
    model = make_model(tmp_path)
    expected = write(model, tmp_path / "a.gguf", [F16, kind], {}, turned=turned)
    assert write(model, tmp_path / "b.gguf", [F16, kind], collect(model, [Q8_0]), turned=turned) == expected


def test_no_more_is_made_than_has_room(tmp_path, monkeypatch):
    monkeypatch.setattr(head_start, "MOST_BYTES", 1)
    assert len(collect(make_model(tmp_path), [Q8_0])) == 1


def test_what_cannot_be_merged_is_said_by_the_pass_alone(tmp_path):
    model = make_model(tmp_path, size=np.inf)
    early = collect(model, [Q8_0])
    assert not early
    with pytest.raises(StageFailure, match="not finite"):
        write(model, tmp_path / "a.gguf", [Q8_0, Q8_0], early)


def test_the_thread_ends_with_its_block(tmp_path):
    with head_start.begun(make_model(tmp_path), [Q8_0], [Q8_0]) as early:
        pass
    kept = dict(early)
    assert kept == early and all(name == "up_proj.weight" for name, _, _ in kept)
