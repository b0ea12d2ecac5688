"""Folders that the service changes while they are looked at."""

from glob import glob
from pathlib import Path


def find(folder: Path, pattern: str) -> list[Path]:
    """As `Path.glob`, which raises when a folder goes between the look for it and the look into it."""
    return [folder / name for name in glob(pattern, root_dir=folder)]  # noqa: PTH207
