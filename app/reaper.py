"""The loop that finds lost work: it takes back what has an expired lease, and rings for what waits while a worker is idle.

Now and then, and in its first round, it also sweeps out what nobody needs any more (`app.sweep`).

It may run anywhere any number of times; the `leader` row lets one of them act. The API runs one; `python -m app.reaper` is one
by itself.
"""

import logging
import signal
import threading
import time
from datetime import timedelta

from sqlalchemy import Engine, delete, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlmodel import Session, col

from app.db import make_engine, write_session
from app.ids import new_id
from app.jobs import recovery, stage_runs
from app.models import Leader, StageRun, Worker
from app.queue import ring
from app.reserve import keep_reserve
from app.settings import Settings, read_flags
from app.storage import Storage
from app.sweep import sweep
from app.webhooks import repository as webhooks
from app.webhooks.outbox import QUEUE

log = logging.getLogger(__name__)

NAME = "reaper"
TERM_IN_ROUNDS = 3
"""A leader that misses this many rounds loses its office."""
FORGOTTEN_AFTER_LEASES = 10
SWEEP_SECONDS = 600.0


class Reaper:
    """A thread that makes a round every REAPER_SECONDS."""

    def __init__(self, engine: Engine, settings: Settings):
        self._engine, self._settings = engine, settings
        self._owner = new_id("rpr_")
        self._sweep_at = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="reaper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._stopped.wait(self._settings.reaper_seconds):
            try:
                keep_reserve(self._engine)
                if make_round(self._engine, self._settings, self._owner) and time.monotonic() >= self._sweep_at:
                    self._sweep_at = time.monotonic() + SWEEP_SECONDS
                    sweep(self._engine, Storage(self._settings.root))
            except (SQLAlchemyError, OSError) as problem:
                log.warning("a round was left out: %s", problem)


def make_round(engine: Engine, settings: Settings, owner: str) -> bool:
    """False when somebody else leads."""
    with write_session(engine) as session:
        if not is_leader(session, owner, settings.reaper_seconds * TERM_IN_ROUNDS):
            return False
        late = [run.id for run in stage_runs.expired(session)]
        forget_workers(session, settings.lease_seconds)
        ring_for_waiting(session, settings.lease_seconds)
    for run_id in late:
        with write_session(engine) as session:
            take_back(session, run_id)
    return True


def is_leader(session: Session, owner: str, seconds: float) -> bool:
    """Takes or keeps the office; only one owner has it at a time."""
    time = stage_runs.read_clock(session)
    until = time + timedelta(seconds=seconds)
    free = (col(Leader.owner) == owner) | (col(Leader.lease_until) < time)
    statement = (
        update(Leader).where(col(Leader.name) == NAME, free).values(owner=owner, lease_until=until).returning(col(Leader.name))
    )
    if session.execute(statement).first():
        return True
    if session.get(Leader, NAME):
        return False
    try:
        with session.begin_nested():
            session.add(Leader(name=NAME, owner=owner, lease_until=until))
    except IntegrityError:  # another was first
        return False
    return True


def take_back(session: Session, run_id: str) -> None:
    run = session.get(StageRun, run_id)
    if run is None:
        return
    error = recovery.lost(run, f"The worker that ran stage {run.stage} has not been heard of for too long.")
    if stage_runs.take_back(session, run, error):
        log.warning("took back %s %s attempt %d from %s", run.job_id or run.file_id, run.stage, run.attempt, run.worker_id)
        recovery.recover(session, run)


def ring_for_waiting(session: Session, lease_seconds: float) -> None:
    """Only where somebody is idle: behind a long job, messages would pile up."""
    waiting: set[str] = set(stage_runs.waiting(session))
    if webhooks.has_due(session):
        waiting.add(QUEUE)
    if waiting:
        alive_since = stage_runs.read_clock(session) - timedelta(seconds=lease_seconds)
        for queue in stage_runs.idle_queues(session, alive_since) & waiting:
            ring(session, queue)


def forget_workers(session: Session, lease_seconds: float) -> None:
    gone = stage_runs.read_clock(session) - timedelta(seconds=lease_seconds * FORGOTTEN_AFTER_LEASES)
    session.execute(delete(Worker).where(col(Worker.heartbeat_at) < gone))


def main() -> None:
    settings = read_flags("tunesmith reaper")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    stopping = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stopping)
    reaper = Reaper(make_engine(settings.database), settings)
    reaper.start()
    signal.sigwait(stopping)
    reaper.stop()


if __name__ == "__main__":
    main()
