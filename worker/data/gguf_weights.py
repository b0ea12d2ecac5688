"""Reads a GGUF file, as far as the built-in model needs it: its header, and tensors of F32, Q8_0 and Q4_1 as bfloat16.

Layouts from ggml's documentation (docs/gguf.md, version 3) and its block definitions. The `gguf` package reads all of them,
but takes seconds to parse a vocabulary, which this does in a fraction of one.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
F32, F16, Q4_1, Q8_0, BF16 = 0, 1, 3, 8, 30
BLOCK = 32
CHUNK_BLOCKS = 8192
"""Blocks turned into weights at a time, so that the intermediate arrays stay in the processor's cache."""


@dataclass(frozen=True)
class Tensor:
    """`shape` is row-major, as in PyTorch; `raw` are the stored bytes."""

    shape: tuple[int, ...]
    kind: int
    raw: np.ndarray


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata by key and tensors by name. The tensors' bytes stay in the mapped file."""
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    reader = Reader(data)
    magic, version, tensor_count, entry_count = reader.take("4sIQQ")
    if magic != b"GGUF" or version != 3:
        raise ValueError(f"{path.name} is not a GGUF file of version 3")
    metadata = {}
    for _ in range(entry_count):
        key = reader.take_string()
        metadata[key] = reader.take_value(*reader.take("I"))
    infos = []
    for _ in range(tensor_count):
        name = reader.take_string()
        shape = reader.take(f"{reader.take('I')[0]}Q")[::-1]
        infos.append((name, shape, *reader.take("IQ")))
    alignment = metadata.get("general.alignment", 32)
    start = -(-reader.position // alignment) * alignment
    tensors = {}
    for name, shape, kind, offset in infos:
        raw = np.frombuffer(data, dtype=np.uint8, count=count_bytes(shape, kind), offset=start + offset)
        tensors[name] = Tensor(shape, kind, raw)
    return metadata, tensors


class Reader:
    def __init__(self, data: mmap.mmap | bytes):
        self._data, self.position = data, 0

    def take(self, layout: str) -> tuple:
        values = struct.unpack_from("<" + layout, self._data, self.position)
        self.position += struct.calcsize("<" + layout)
        return values

    def slice(self, start: int) -> bytes:
        """What was read since the position `start`."""
        return self._data[start : self.position]

    def take_string(self) -> str:
        (length,) = self.take("Q")
        self.position += length
        return self._data[self.position - length : self.position].decode()

    def take_value(self, kind: int) -> Any:
        if kind == STRING:
            return self.take_string()
        if kind == ARRAY:
            item_kind, count = self.take("IQ")
            if item_kind == STRING:
                return [self.take_string() for _ in range(count)]
            return list(self.take(f"{count}{SCALARS[item_kind]}"))
        return self.take(SCALARS[kind])[0]

    def skip_value(self, kind: int) -> None:
        """Goes behind a value; the texts of a vocabulary are many, and not looked at."""
        count = 1
        if kind == ARRAY:
            kind, count = self.take("IQ")
        if kind != STRING:
            self.position += count * struct.calcsize(SCALARS[kind])
            return
        position, read_length = self.position, struct.Struct("<Q").unpack_from
        for _ in range(count):
            position += 8 + read_length(self._data, position)[0]
        self.position = position


def count_bytes(shape: tuple[int, ...], kind: int) -> int:
    weights = int(np.prod(shape))
    sizes = {F32: 4 * weights, F16: 2 * weights, BF16: 2 * weights, Q4_1: weights // BLOCK * 20, Q8_0: weights // BLOCK * 34}
    return sizes[kind]


def to_bfloat16(tensor: Tensor) -> np.ndarray:
    """The weights, rounded to nearest even, as the uint16 bit patterns of bfloat16, in the tensor's shape.

    A Q8_0 block is a scale and 32 signed bytes; a Q4_1 block a scale, a minimum and 32 nibbles, the low ones first.
    """
    if tensor.kind == F32:
        return round_to_bfloat16(tensor.raw.view(np.float32).copy()).reshape(tensor.shape)
    expand = {Q4_1: expand_q4_1, Q8_0: expand_q8_0}[tensor.kind]
    blocks = tensor.raw.reshape(-1, {Q4_1: 20, Q8_0: 34}[tensor.kind])
    result = np.empty((len(blocks), BLOCK), dtype=np.uint16)
    for start in range(0, len(blocks), CHUNK_BLOCKS):
        result[start : start + CHUNK_BLOCKS] = round_to_bfloat16(expand(blocks[start : start + CHUNK_BLOCKS]))
    return result.reshape(tensor.shape)


def expand_q4_1(blocks: np.ndarray) -> np.ndarray:
    scale, minimum = blocks[:, 0:4].copy().view(np.float16).astype(np.float32).T
    nibbles = blocks[:, 4:]
    weights = np.empty((len(blocks), BLOCK), dtype=np.float32)
    weights[:, :16] = nibbles & 15
    weights[:, 16:] = nibbles >> 4
    weights *= scale[:, None]
    weights += minimum[:, None]
    return weights


def expand_q8_0(blocks: np.ndarray) -> np.ndarray:
    scale = blocks[:, 0:2].copy().view(np.float16).astype(np.float32)
    return blocks[:, 2:].view(np.int8) * scale


def round_to_bfloat16(weights: np.ndarray) -> np.ndarray:
    """Finite float32 to bfloat16 bits. Changes its argument."""
    bits = weights.view(np.uint32)
    odd = bits >> 16
    odd &= 1
    odd += 0x7FFF
    bits += odd
    bits >>= 16
    return bits.astype(np.uint16)
