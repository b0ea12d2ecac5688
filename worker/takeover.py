"""Which workers of this data folder live, told by a lock that the kernel drops with its holder, and what the dead ones left.

DATA_DIR/run/workers/<worker id>.lock       held for as long as the worker's process lives, frozen or not

A process id would not do: it is given away again, and means nothing in another container. A worker elsewhere, or on a data
folder of its own, is none of our business; its lease tells.
"""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import Engine, delete
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import col

from app.db import read_session, write_session
from app.jobs import recovery, stage_runs
from app.jobs.tidying import tidy
from app.models import StageRun, Worker
from app.storage import Storage
from worker.inputs import attempt_folder
from worker.leftovers import end_group

log = logging.getLogger(__name__)


@contextmanager
def presence(storage: Storage, worker_id: str) -> Iterator[None]:
    """Shows that the worker lives. The file appears with its lock held, so that nobody sees it free before."""
    path = storage.worker_lock(worker_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        part.replace(path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def take_over(engine: Engine, storage: Storage) -> None:
    """Ends the processes of dead workers and takes back what they ran, at once rather than when their leases run out."""
    for worker_id in find_dead(storage):
        with read_session(engine) as session:
            runs = stage_runs.held_by(session, worker_id)
        for run in runs:
            if end_group(attempt_folder(storage, run)):
                log.warning("ended what the dead worker %s left of %s attempt %d", worker_id, run.stage, run.attempt)
            take_back(engine, storage, run)
        with write_session(engine) as session:
            session.execute(delete(Worker).where(col(Worker.id) == worker_id))


def find_dead(storage: Storage) -> Iterator[str]:
    """The ids of workers that have died without a word. Each is given out once, and is forgotten when the caller is done."""
    for path in sorted(storage.worker_locks()):
        with suppress(FileNotFoundError), path.open("r+") as file:  # another new worker may have been faster
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield path.stem
            path.unlink(missing_ok=True)


def take_back(engine: Engine, storage: Storage, run: StageRun) -> None:
    with write_session(engine) as session:
        error = recovery.lost(run, f"The worker that ran stage {run.stage} died.")
        if stage_runs.take_back(session, run, error, at_once=True):
            log.warning("took back %s %s attempt %d", run.job_id or run.file_id, run.stage, run.attempt)
            recovery.recover(session, session.get_one(StageRun, run.id))
    try:
        with read_session(engine) as session:
            tidy(session, storage, recovery.load_owner(session, run))
    except (OSError, SQLAlchemyError) as problem:  # the reaper may be sweeping the same folder
        log.warning("what %s need not keep is left to the sweep: %s", attempt_folder(storage, run), problem)
