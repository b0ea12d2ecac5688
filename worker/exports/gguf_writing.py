"""Writes GGUF files tensor by tensor, several from one reading of the weights: merged, reordered, quantised on all cores.

In memory are a few portions of rows for each core, whatever the size of the model.
"""

import hashlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from worker.exports import ggml, kernels
from worker.exports.floats import DTYPES, as_bytes, narrowed, widened
from worker.exports.gguf_header import ALIGNMENT, Header, Slot
from worker.exports.merged import CHUNK_WEIGHTS, Factors, Merger, Progress, row_ranges
from worker.exports.shards import Entry

AHEAD = 3
"""Portions under work for each core: one, and what waits while another one is slow."""


@dataclass(frozen=True)
class Matrix:
    """A tensor of the model, for one of the GGUF; `order`, when not None, says which of its rows comes where."""

    path: Path
    entry: Entry
    order: np.ndarray | None = None


Buffer = bytes | memoryview | np.ndarray
Making = tuple[ggml.Kind, str | None]
"""The type of a block, and the one, of DTYPES, that its weights are rounded to before, where they are of another."""
Blocks = dict[tuple[str, int, int], dict[Making, Buffer]]
"""Portions of the model's tensors in the order of the model: by name, first row and the one behind the last."""
Contents = dict[str, Matrix | np.ndarray]
"""What goes into the tensors of a GGUF, by their names: a matrix, or the float32 themselves."""


@dataclass
class Target:
    """A file to write. `rounded` is the header of the 16-bit file that it stands in for: weights are rounded to its types
    before they are quantised, as they are by whoever writes that file first."""

    path: Path
    header: Header
    rounded: Header | None = None
    slots: dict[str, Slot] = field(init=False)
    via: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.slots = {slot.name: slot for slot in self.header.slots}
        self.via = {slot.name: slot.kind.name for slot in self.rounded.slots} if self.rounded else {}

    def offset(self, name: str, row: int) -> int:
        """Where a row lies, counted from where the weights start."""
        slot = self.slots[name]
        return slot.offset + row * (slot.bytes // (slot.shape[0] if slot.shape else 1))

    def making(self, name: str, stored: str) -> Making:
        """How a tensor is made from weights that are of the type `stored`."""
        via = self.via.get(name)
        return self.slots[name].kind, None if via == stored else via


class Output:
    """A file whose hash is taken while it is written, as long as that goes on in order; otherwise at the end.

    Offsets are counted from where the weights start.
    """

    def __init__(self, target: Target):
        prefix = target.header.to_bytes()
        self._start, self._path, self._size = len(prefix), target.path, target.header.file_bytes
        self._file = target.path.open("wb")
        self._file.truncate(self._size)
        self._digest, self._hashed = hashlib.sha256(), 0
        self.write(-self._start, prefix)

    def write(self, offset: int, data: Buffer) -> None:
        self.put(offset, data)
        self.hash(offset, data)

    def put(self, offset: int, data: Buffer) -> None:
        """Several threads may do so at the same time."""
        place, view = self._start + offset, memoryview(data).cast("B")  # type: ignore[arg-type]
        while view:
            written = os.pwrite(self._file.fileno(), view, place)
            place, view = place + written, view[written:]

    def hash(self, offset: int, data: Buffer) -> None:
        place, view = self._start + offset, memoryview(data).cast("B")  # type: ignore[arg-type]
        if 0 <= place - self._hashed < ALIGNMENT:
            self._digest.update(bytes(place - self._hashed))
            self._digest.update(view)
            self._hashed = place + len(view)

    def close(self) -> str:
        """Returns the sha256 of the whole file."""
        self._file.close()
        if self._size - self._hashed < ALIGNMENT:
            self._digest.update(bytes(self._size - self._hashed))
            return self._digest.hexdigest()
        with self._path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def write(
    targets: list[Target], contents: Contents, merger: Merger, progress: Progress, early: Blocks | None = None
) -> list[str]:
    """Writes all of the files, each in the order of the first one's tensors. Returns the sha256 of each.

    `early` are blocks that have been made already. StageFailure for an adapter that does not fit the base or is not finite.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    waiting: deque[tuple[str, int, Future]] = deque()
    with ExitStack() as stack:
        outputs = [Output(target) for target in targets]
        shards: dict[Path, BinaryIO] = {path: stack.enter_context(path.open("rb")) for path in merger.shards}
        pool = ThreadPoolExecutor(cores)
        stack.callback(pool.shutdown, cancel_futures=True)
        maker = Maker(targets, outputs, merger, shards, early or {})

        def settle() -> None:
            name, start, future = waiting.popleft()
            for target, output, block in zip(targets, outputs, future.result(), strict=True):
                output.hash(target.offset(name, start), block)

        for done, slot in enumerate(targets[0].header.slots, 1):
            content = contents[slot.name]
            factors = merger.factors(content.entry) if isinstance(content, Matrix) else None
            for start, stop in portions(content):
                waiting.append((slot.name, start, pool.submit(maker.make, slot.name, content, factors, start, stop)))
                if len(waiting) > AHEAD * cores:
                    settle()
            progress(done, len(targets[0].header.slots))
        while waiting:
            settle()
    return [output.close() for output in outputs]


def portions(content: "Matrix | np.ndarray") -> Iterator[tuple[int, int]]:
    """Ranges of rows that hold the same rows before and after they are put in order, as small as CHUNK_WEIGHTS allows."""
    if isinstance(content, np.ndarray):
        yield 0, len(content)
        return
    yield from ordered_portions(content)


def ordered_portions(matrix: Matrix) -> Iterator[tuple[int, int]]:
    """Ranges of rows that hold the same rows before and after they are put in order, as small as CHUNK_WEIGHTS allows."""
    if matrix.order is None:
        yield from row_ranges(matrix.entry)
        return
    ends = np.flatnonzero(np.maximum.accumulate(matrix.order) == np.arange(len(matrix.order))) + 1
    most = max(1, CHUNK_WEIGHTS // matrix.entry.shape[1])
    start = 0
    while start < len(matrix.order):
        later = ends[ends > start]
        near = later[later <= start + most]
        stop = int(near[-1] if len(near) else later[0])
        yield start, stop
        start = stop


@dataclass(frozen=True)
class Maker:
    """Makes the portions of all files, and puts them into their places."""

    targets: list[Target]
    outputs: list[Output]
    merger: Merger
    shards: dict[Path, BinaryIO]
    early: Blocks

    def make(self, name: str, content: Matrix | np.ndarray, factors: Factors | None, start: int, stop: int) -> list[Buffer]:
        """A portion of a tensor as each of the files has it now."""
        if isinstance(content, Matrix):
            blocks = self.blocks(name, content, factors, start, stop)
        else:
            blocks = [content] * len(self.targets)
        for target, output, block in zip(self.targets, self.outputs, blocks, strict=True):
            output.put(target.offset(name, start), block)
        return blocks

    def blocks(self, name: str, matrix: Matrix, factors: Factors | None, start: int, stop: int) -> list[Buffer]:
        entry, stored = matrix.entry, self.merger.stored_dtype(matrix.entry)
        keys = [target.making(name, stored) for target in self.targets]
        made = self.early.pop((entry.name, start, stop), {}) if matrix.order is None else {}
        if missing := set(keys) - made.keys():
            rows = self.merger.floats(self.shards[matrix.path], entry, factors, start, stop)
            if matrix.order is not None:
                rows = rows[matrix.order[start:stop] - start]
            made |= {key: as_kind(rows, *key) for key in missing}
        return [made[key] for key in keys]


def as_kind(rows: np.ndarray, kind: ggml.Kind, via: str | None = None) -> Buffer:
    """float32 as the bytes of a type, rounded to another one of DTYPES before."""
    rounded = rows if via is None else widened(narrowed(rows, via), via)
    if kind.name in DTYPES:
        return as_bytes(narrowed(rounded, kind.name))
    return kernels.quantize(rounded.reshape(-1, rows.shape[-1]), kind)
