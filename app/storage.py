"""Where content lives: blobs by hash, and the folders that stage attempts write in.

    DATA_DIR/blobs/ab/abcdef…          content-addressed, written whole or not at all, read-only
    DATA_DIR/jobs/<job id>/<stage>/<attempt>/
    DATA_DIR/files/<file id>/inspect/<attempt>/
    DATA_DIR/uploads/                  content on its way in
    DATA_DIR/run/workers/              a lock of each worker that lives

Rows name blobs by hash and attempts by job, stage and number; only this module knows paths.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

LOG = "log.txt"
EVENTS = "events.jsonl"
CHECKPOINTS = "out/checkpoints/step-*"
"""Below the folder of an attempt."""


class Storage:
    """Local storage under one folder, on one file system."""

    def __init__(self, root: Path):
        self.root = root

    def blob(self, sha256: str) -> Path:
        return self.root / "blobs" / sha256[:2] / sha256

    def ingest(self, source: Path, sha256: str) -> None:
        """Takes a finished file by hard link: the source may stay or go. The caller vouches for the hash."""
        target = self.blob(sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except FileExistsError:
            return
        target.chmod(0o644)

    def blobs(self) -> Iterator[Path]:
        """Every file of content; its name is its hash."""
        return (self.root / "blobs").glob("??/*")

    def remove_blob(self, sha256: str) -> None:
        self.blob(sha256).unlink(missing_ok=True)

    def upload(self, upload_id: str) -> Path:
        """A place for content whose hash is not known yet."""
        folder = self.root / "uploads"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / upload_id

    def uploads(self) -> Iterator[Path]:
        return (self.root / "uploads").glob("*")

    def job_folder(self, job_id: str) -> Path:
        return self.root / "jobs" / job_id

    def attempt_folder(self, job_id: str, stage: str, attempt: int) -> Path:
        return self.job_folder(job_id) / stage / str(attempt)

    def checkpoint(self, job_id: str, attempt: int, step: int) -> Path:
        return self.attempt_folder(job_id, "train", attempt) / "out" / "checkpoints" / f"step-{step:06d}"

    def file_folder(self, file_id: str) -> Path:
        return self.root / "files" / file_id

    def job_folders(self) -> Iterator[Path]:
        return (self.root / "jobs").glob("*")

    def file_folders(self) -> Iterator[Path]:
        return (self.root / "files").glob("*")

    def worker_lock(self, worker_id: str) -> Path:
        return self.root / "run" / "workers" / f"{worker_id}.lock"

    def worker_locks(self) -> Iterator[Path]:
        return (self.root / "run" / "workers").glob("*.lock")

    def remove_job(self, job_id: str) -> None:
        shutil.rmtree(self.job_folder(job_id), ignore_errors=True)

    def remove_file(self, file_id: str) -> None:
        shutil.rmtree(self.file_folder(file_id), ignore_errors=True)


def discard_partial(attempt: Path) -> None:
    """Of an attempt that did not succeed: all but its log, reports and checkpoints, so that there is room to say so."""
    keep_only(attempt, {LOG, EVENTS, CHECKPOINTS})


def keep_only(folder: Path, patterns: set[str]) -> None:
    """Removes what matches none of the patterns, which are relative to `folder`, and holds nothing that does."""
    clear(folder, {path for pattern in patterns for path in folder.glob(pattern)})


def clear(path: Path, staying: set[Path]) -> None:
    if path in staying:
        return
    if any(kept.is_relative_to(path) for kept in staying):
        for inside in list(path.iterdir()):
            clear(inside, staying)
    else:
        remove(path)


def remove(path: Path) -> None:
    """A folder loses its name first, so that nobody finds half of it. Somebody else may be faster."""
    with suppress(FileNotFoundError, NotADirectoryError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path if path.name.startswith(".") else path.rename(path.with_name(f".old-{path.name}")))
        else:
            path.unlink()
