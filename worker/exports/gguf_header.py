"""What stands before the weights of a GGUF file: its metadata, and where each tensor lies.

Layout from ggml's documentation (docs/gguf.md, version 3). Metadata is kept as the bytes that it was read from.
"""

import mmap
import struct
from dataclasses import dataclass, replace
from pathlib import Path

from worker.data.gguf_weights import Reader
from worker.exports.ggml import KINDS, Kind

ALIGNMENT = 32
STRING, UINT32 = 8, 4


@dataclass(frozen=True)
class Slot:
    """A tensor's place. `shape` is row-major; `offset` counts from the beginning of the weights."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    offset: int = 0

    @property
    def bytes(self) -> int:
        return self.kind.bytes_of(self.shape)


@dataclass(frozen=True)
class Header:
    """`fields` are the metadata in order: the type and the value of each key, as stored."""

    fields: dict[str, bytes]
    slots: list[Slot]

    def with_fields(self, **numbers: int) -> "Header":
        """The same with unsigned numbers at the end of the metadata, in place of what was there under their names."""
        fields = {key: value for key, value in self.fields.items() if key not in numbers}
        return replace(self, fields=fields | {key: struct.pack("<II", UINT32, value) for key, value in numbers.items()})

    def text(self, key: str) -> str:
        """The value of a field that is a string; KeyError when there is none."""
        return self.fields[key][12:].decode()

    def number(self, key: str) -> int | None:
        return struct.unpack_from("<I", self.fields[key], 4)[0] if key in self.fields else None

    def to_bytes(self) -> bytes:
        """The header with the padding behind it: its length is where the weights start."""
        parts = [struct.pack("<4sIQQ", b"GGUF", 3, len(self.slots), len(self.fields))]
        parts += [pack_string(key) + value for key, value in self.fields.items()]
        for slot in self.slots:
            shape = struct.pack(f"<I{len(slot.shape)}Q", len(slot.shape), *reversed(slot.shape))
            parts.append(pack_string(slot.name) + shape + struct.pack("<IQ", slot.kind.number, slot.offset))
        data = b"".join(parts)
        return data + bytes(-len(data) % ALIGNMENT)

    @property
    def file_bytes(self) -> int:
        return len(self.to_bytes()) + max(padded(slot.offset + slot.bytes) for slot in self.slots)


def read_header(path: Path) -> Header:
    """ValueError or struct.error for a file that is none or is cut off, and for types that are not among KINDS."""
    with path.open("rb") as file:
        reader = Reader(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    magic, version, slot_count, field_count = reader.take("4sIQQ")
    if (magic, version) != (b"GGUF", 3):
        raise ValueError(f"{path.name} is not a GGUF file of version 3")
    fields = {}
    for _ in range(field_count):
        key, start = reader.take_string(), reader.position
        reader.skip_value(*reader.take("I"))
        fields[key] = reader.slice(start)
    slots = []
    for _ in range(slot_count):
        name = reader.take_string()
        shape = reader.take(f"{reader.take('I')[0]}Q")[::-1]
        number, offset = reader.take("IQ")
        if number not in KINDS:
            raise ValueError(f"{name} is of the type {number}, which is not known")
        slots.append(Slot(name, shape, KINDS[number], offset))
    return Header(fields, slots)


def placed(slots: list[Slot]) -> list[Slot]:
    """The same tensors, one after the other."""
    result, offset = [], 0
    for slot in slots:
        result.append(replace(slot, offset=offset))
        offset += padded(slot.bytes)
    return result


def padded(size: int) -> int:
    return size + -size % ALIGNMENT


def pack_text(text: str) -> bytes:
    """A field's value."""
    return struct.pack("<I", STRING) + pack_string(text)


def pack_string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
