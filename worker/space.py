"""Room on the disk, asked for before a stage's work begins."""

from pathlib import Path

from app.disk import MAKE_SPACE, free_bytes, in_words
from app.jobs.states import FailureCode
from worker.stages import StageFailure

SPARE_BYTES = 32 << 20
"""Beside a twentieth of what is to be written: for logs, reports and the database."""
CACHE_DISK = "the disk of TUNESMITH_CACHE_DIR"


def require_space(place: Path, needed: int, work: str, *, disk: str = "the disk of the data folder") -> None:
    """StageFailure disk_full, with both figures, unless there is room for `needed` bytes and the margin."""
    needed += needed // 20 + SPARE_BYTES
    free = free_bytes(place)
    if free < needed:
        message = f"{work} needs {in_words(needed)} on {disk}, where {in_words(free)} are free."
        raise StageFailure(FailureCode.DISK_FULL, message, hint=f"{MAKE_SPACE}, then retry the job.")
