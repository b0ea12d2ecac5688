"""Safetensors shards, read and written one tensor at a time.

A shard is eight bytes (the header's length, little endian), a JSON header, and the tensors' bytes without holes; the
safetensors repository describes the format. Written like this a shard needs the memory of one tensor, where `save_file` needs
that of all.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np

CHUNK_BYTES = 1 << 20
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class Entry:
    """A tensor in a shard. `start` and `bytes` say where it lies, counted from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    bytes: int

    def as_dtype(self, dtype: str) -> "Entry":
        """The same tensor stored as another type of float."""
        if dtype == self.dtype:
            return self
        return replace(self, dtype=dtype, bytes=prod(self.shape) * ITEM_BYTES[dtype])

    def chunks(self, file: BinaryIO, limit: int = CHUNK_BYTES) -> Iterator[bytearray]:
        """The tensor's bytes, at most `limit` at a time, each chunk in memory of its own."""
        file.seek(self.start)
        left = self.bytes
        while left:
            chunk = bytearray(min(left, limit))
            if file.readinto(chunk) != len(chunk):  # type: ignore[attr-defined]
                raise EOFError(f"The shard ends inside {self.name}.")
            left -= len(chunk)
            yield chunk

    @property
    def rows(self) -> int:
        return self.shape[0] if self.shape else 1

    def read_rows(self, file: BinaryIO, start: int, stop: int) -> np.ndarray:
        """The bytes of some rows, wherever the file is being read; threads may do so at the same time."""
        width = self.bytes // self.rows if self.rows else 0
        data = np.empty((stop - start) * width, np.uint8)
        if os.preadv(file.fileno(), [data.data], self.start + start * width) != len(data):
            raise EOFError(f"The shard ends inside {self.name}.")
        return data


def read_entries(path: Path) -> list[Entry]:
    """The tensors of a shard, in the order of their bytes."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    entries = []
    for name, field in header.items():
        start, end = field["data_offsets"]
        entries.append(Entry(name, field["dtype"], tuple(field["shape"]), 8 + length + start, end - start))
    return sorted(entries, key=lambda entry: entry.start)


def shard_header(entries: list[Entry]) -> bytes:
    """What stands before the tensors' bytes."""
    header: dict = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        header[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [end, end + entry.bytes]}
        end += entry.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of eight
    return len(text).to_bytes(8, "little") + text


def write_shard(path: Path, entries: list[Entry], blocks: Iterable[bytearray | memoryview]) -> str:
    """Writes the header for `entries`, then `blocks`: their bytes, in the same order. Returns the sha256 of the file in hex."""
    prefix, end = shard_header(entries), sum(entry.bytes for entry in entries)
    digest = hashlib.sha256(prefix)
    with path.open("wb") as file:
        file.write(prefix)
        for block in blocks:
            digest.update(block)
            file.write(block)
        written = file.tell() - len(prefix)
    if written != end:
        raise ValueError(f"{path.name} holds {written} bytes of tensors where its header says {end}.")
    return digest.hexdigest()
