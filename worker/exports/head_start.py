"""Portions of the weights that are made while the converter still thinks, on the core that it leaves free.

Where they belong, and whether they do, is not known then: only the tensors that every architecture takes as they are, in the
types that were asked for. What turns out differently is made again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

from worker.exports import kernels
from worker.exports.floats import DTYPES
from worker.exports.ggml import Kind
from worker.exports.gguf_writing import Blocks, as_kind
from worker.exports.merged import Merger, row_ranges
from worker.exports.shards import Entry
from worker.stages import StageFailure

MOST_BYTES = 512 << 20
REORDERED = ("q_proj.weight", "k_proj.weight")
"""Their rows have another order in the files of some architectures."""


@contextmanager
def begun(merger: Merger, kinds: list[Kind], machine_code: list[Kind]) -> Iterator[Blocks]:
    """Collects blocks of all of the kinds until the end of the block of code, at most MOST_BYTES, in a thread of its own.

    It loads the kernels for `machine_code` first.
    """
    blocks: Blocks = {}
    enough = Event()

    def work() -> None:
        kernels.load(machine_code)
        if kinds:
            collect(blocks, merger, kinds, enough)

    thread = Thread(target=work)
    thread.start()
    try:
        yield blocks
    finally:
        enough.set()
        thread.join()


def collect(blocks: Blocks, merger: Merger, kinds: list[Kind], enough: Event) -> None:
    """Fills `blocks`. A tensor that cannot be merged is left to whoever must have it, and can say so."""
    size = 0
    for path, entries in merger.shards.items():
        with path.open("rb") as file:
            for entry in (entry for entry in entries if is_plain(entry, kinds)):
                try:
                    factors = merger.factors(entry)
                    for start, stop in row_ranges(entry):
                        if enough.is_set() or size >= MOST_BYTES:
                            return
                        rows = merger.floats(file, entry, factors, start, stop)
                        blocks[entry.name, start, stop] = {(kind, None): as_kind(rows, kind) for kind in kinds}
                        size += sum(kind.bytes_of(rows.shape) for kind in kinds)
                except StageFailure:
                    return


def is_plain(entry: Entry, kinds: list[Kind]) -> bool:
    if len(entry.shape) != 2 or entry.dtype not in DTYPES or not entry.name.endswith(".weight"):
        return False
    return not entry.name.endswith(REORDERED) and all(entry.shape[1] % kind.block == 0 for kind in kinds)
