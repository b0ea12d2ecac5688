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
import torch

from worker.exports import ggml, kernels
from worker.exports.gguf_header import ALIGNMENT, Header, Slot
from worker.exports.merged import CHUNK_WEIGHTS, Factors, Merger, Progress, as_bytes, row_ranges
from worker.exports.shards import Entry

DTYPES = {ggml.F32: torch.float32, ggml.F16: torch.float16, ggml.BF16: torch.bfloat16}
AHEAD = 3
"""Portions under work for each core: one, and what waits while another one is slow."""


@dataclass(frozen=True)
class Matrix:
    """A tensor of the model, for one of the GGUF; `order`, when not None, says which of its rows comes where."""

    path: Path
    entry: Entry
    order: np.ndarray | None = None


Buffer = bytes | memoryview | np.ndarray
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
    via: dict[str, torch.dtype] = field(init=False)

    def __post_init__(self) -> None:
        self.slots = {slot.name: slot for slot in self.header.slots}
        self.via = {slot.name: DTYPES[slot.kind] for slot in self.rounded.slots} if self.rounded else {}


class Output:
    """A file whose hash is taken while it is written, as long as that goes on in order; otherwise at the end."""

    def __init__(self, target: Target):
        prefix = target.header.to_bytes()
        self._start, self._path, self._size = len(prefix), target.path, target.header.file_bytes
        self._file = target.path.open("wb")
        self._file.truncate(self._size)
        self._digest, self._hashed = hashlib.sha256(), 0
        self.write(-self._start, prefix)

    def write(self, offset: int, data: Buffer) -> None:
        """At `offset`, counted from where the weights start."""
        place, view = self._start + offset, memoryview(data).cast("B")  # type: ignore[arg-type]
        if 0 <= place - self._hashed < ALIGNMENT:
            self._digest.update(bytes(place - self._hashed))
            self._digest.update(view)
            self._hashed = place + len(view)
        while view:
            written = os.pwrite(self._file.fileno(), view, place)
            place, view = place + written, view[written:]

    def close(self) -> str:
        """Returns the sha256 of the whole file."""
        self._file.close()
        if self._size - self._hashed < ALIGNMENT:
            self._digest.update(bytes(self._size - self._hashed))
            return self._digest.hexdigest()
        with self._path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def write(targets: list[Target], contents: Contents, merger: Merger, progress: Progress) -> list[str]:
    """Writes all of the files, each in the order of the first one's tensors. Returns the sha256 of each.

    StageFailure for an adapter that does not fit the base or is not finite.
    """
    torch.set_num_threads(1)  # each core has a thread of its own here
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    waiting: deque[tuple[str, int, Future]] = deque()
    with ExitStack() as stack:
        outputs = [Output(target) for target in targets]
        shards = {path: stack.enter_context(path.open("rb")) for path in merger.shards}
        pool = ThreadPoolExecutor(cores)
        stack.callback(pool.shutdown, cancel_futures=True)

        def settle() -> None:
            name, start, future = waiting.popleft()
            for target, output, block in zip(targets, outputs, future.result(), strict=True):
                slot = target.slots[name]
                row = slot.bytes // (slot.shape[0] if slot.shape else 1)
                output.write(slot.offset + start * row, block)

        for done, slot in enumerate(targets[0].header.slots, 1):
            content = contents[slot.name]
            if isinstance(content, np.ndarray):
                vector: Future = Future()
                vector.set_result([content] * len(targets))
                waiting.append((slot.name, 0, vector))
            else:
                factors = merger.factors(content.entry)
                for start, stop in portions(content):
                    arguments = (content, shards[content.path], factors, start, stop, targets, slot.name, merger)
                    waiting.append((slot.name, start, pool.submit(make, *arguments)))
                    if len(waiting) > AHEAD * cores:
                        settle()
            progress(done, len(targets[0].header.slots))
        while waiting:
            settle()
    return [output.close() for output in outputs]


def portions(matrix: Matrix) -> Iterator[tuple[int, int]]:
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


def make(
    matrix: Matrix,
    file: BinaryIO,
    factors: Factors | None,
    start: int,
    stop: int,
    targets: list[Target],
    name: str,
    merger: Merger,
) -> list[memoryview | np.ndarray]:
    """A portion of a matrix as each of the files has it."""
    rows = merger.rows(file, matrix.entry, factors, start, stop)
    if matrix.order is not None:
        rows = rows[torch.from_numpy(matrix.order[start:stop] - start)]
    made: dict[tuple, memoryview | np.ndarray] = {}
    for target in targets:
        key = target.slots[name].kind, target.via.get(name)
        if key not in made:
            made[key] = as_kind(rows, *key)
    return [made[target.slots[name].kind, target.via.get(name)] for target in targets]


def as_kind(rows: torch.Tensor, kind: ggml.Kind, via: torch.dtype | None) -> memoryview | np.ndarray:
    rounded = rows if via is None else rows.to(via)
    if kind in DTYPES:
        return as_bytes(rounded.to(DTYPES[kind]))
    return kernels.quantize(rounded.float().reshape(-1, rows.shape[-1]).numpy(), kind)
