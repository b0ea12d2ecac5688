"""What the stage processes of a job printed."""

from collections import deque
from collections.abc import Iterable, Iterator

from app.models import StageRun
from app.storage import Storage


def read_logs(storage: Storage, job_id: str, runs: Iterable[StageRun]) -> Iterator[str]:
    """The lines of the given attempts in their order, each attempt under a heading."""
    for run in runs:
        path = storage.attempt_folder(job_id, run.stage, run.attempt) / "log.txt"
        if path.is_file():
            yield f"==> {run.stage}, attempt {run.attempt} <==\n"
            with path.open(encoding="utf-8", errors="replace") as lines:
                yield from lines


def last_lines(lines: Iterable[str], count: int) -> Iterator[str]:
    return iter(deque(lines, maxlen=count))
