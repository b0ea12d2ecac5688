import hashlib

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from worker.exports.shards import read_entries, write_shard

TENSORS = {
    "odd": torch.arange(5, dtype=torch.uint8),
    "half": torch.randn(3, 7).to(torch.bfloat16),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 4),
    "wide": torch.randn(2, 3, 4, dtype=torch.float64),
}


def copy(source, target):
    entries = read_entries(source)
    with source.open("rb") as file:
        return write_shard(target, entries, (chunk for entry in entries for chunk in entry.chunks(file, 7)))


def test_a_copied_shard_holds_the_same_tensors(tmp_path):
    save_file(TENSORS, tmp_path / "a.safetensors")
    copy(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    copied = load_file(tmp_path / "b.safetensors")
    assert copied.keys() == TENSORS.keys()
    assert all(torch.equal(copied[name], tensor) and copied[name].dtype == tensor.dtype for name, tensor in TENSORS.items())
    with safe_open(tmp_path / "b.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_hash_is_that_of_the_file(tmp_path):
    save_file(TENSORS, tmp_path / "a.safetensors")
    digest = copy(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert digest == hashlib.sha256((tmp_path / "b.safetensors").read_bytes()).hexdigest()


def test_a_cut_off_shard_is_an_error(tmp_path):
    save_file(TENSORS, tmp_path / "a.safetensors")
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(whole[:-1])
    with pytest.raises(EOFError, match="odd"):
        copy(tmp_path / "a.safetensors", tmp_path / "b.safetensors")


def test_too_few_bytes_are_an_error(tmp_path):
    save_file(TENSORS, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="header says"):
        write_shard(tmp_path / "b.safetensors", read_entries(tmp_path / "a.safetensors"), [bytearray(3)])
