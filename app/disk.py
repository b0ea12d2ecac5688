"""Room on a disk: how much there is, and whether an error says that there is none."""

import errno
import re
import shutil
from pathlib import Path

FULL = re.compile(r"no space left|disk is full|disk quota exceeded", re.IGNORECASE)
PERHAPS_FULL = re.compile(r"\d+ requested and \d+ written|inline_container|iostream error|disk I/O error")
"""How NumPy, torch and SQLite put it when they do not say why a write failed."""
ALMOST_NOTHING = 1 << 20
"""A disk with less room than these bytes is taken for full."""
MAKE_SPACE = "Delete jobs and files that are no longer needed, or give the disk more room"


def free_bytes(place: Path) -> int:
    """What a user may still write on the disk of a folder, which need not be there yet."""
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def is_full(problem: BaseException | None, place: Path) -> bool:
    """Whether an error, or one that it was raised from or during, says that a disk is full; in doubt, `place` decides."""
    while problem is not None:
        if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        text = str(problem)
        if FULL.search(text) or (PERHAPS_FULL.search(text) and free_bytes(place) < ALMOST_NOTHING):
            return True
        problem = problem.__cause__ or problem.__context__
    return False


def in_words(size: int) -> str:
    return f"{size / 2**30:.1f} GB" if size >= 2**30 else f"{size / 2**20:.1f} MB"
