"""File systems of a few megabytes, for tests that fill them."""

import errno
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.disk import free_bytes


@contextmanager
def mounted(folder: Path, size: int) -> Iterator[Path]:
    """A file system of `size` bytes in memory, at `folder`. Skips the test where none can be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, leaving: int = 0) -> Path:
    """Takes all that is left, or all but `leaving` bytes, and answers the file to remove."""
    path = folder / "filler"
    with path.open("ab", buffering=0) as file:
        try:
            while not leaving or free_bytes(folder) > leaving:
                file.write(bytes(1 << 16))
        except OSError as problem:
            assert problem.errno == errno.ENOSPC
    return path
