"""What the service's database knows, read beside the service; and triggers in it that write down stale writes."""

from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine
from sqlmodel import Session, col, select

from app.db import read_session, write_session
from app.jobs import recovery, stage_runs
from app.jobs.states import StageStatus
from app.models import StageRun, Worker

LONG_AGO = datetime.min.replace(tzinfo=UTC)
AUDIT = (
    "CREATE TABLE IF NOT EXISTS chaos_stale (what TEXT, stage_run_id TEXT, at TEXT)",
    # An ended run is final, but for its key, which is written in the transaction that ends it.
    """CREATE TRIGGER IF NOT EXISTS chaos_run AFTER UPDATE OF status, fence, lease_until, outputs, error ON stage_run
    WHEN OLD.status NOT IN ('queued', 'running')
    BEGIN INSERT INTO chaos_stale VALUES ('stage_run', OLD.id, datetime('now')); END""",
    # A claim gives a run the fence 1; only to take the run away raises it further.
    *(
        f"""CREATE TRIGGER IF NOT EXISTS chaos_{table} AFTER INSERT ON {table}
        WHEN (SELECT fence != 1 OR status = 'queued' FROM stage_run WHERE id = NEW.stage_run_id)
        BEGIN INSERT INTO chaos_stale VALUES ('{table}', NEW.stage_run_id, datetime('now')); END"""
        for table in ("metric_chunk", "checkpoint")
    ),
)


def install_audit(engine: Engine) -> None:
    with write_session(engine) as session:
        for statement in AUDIT:
            session.connection().exec_driver_sql(statement)


def find_run(session: Session, attempt: Path) -> StageRun | None:
    """The run whose folder is `attempt`: …/OWNER/STAGE/NUMBER."""
    owner, stage, number = attempt.parts[-3:]
    column = col(StageRun.job_id) if owner.startswith("job_") else col(StageRun.file_id)
    return session.exec(
        select(StageRun).where(column == owner, StageRun.stage == stage, StageRun.attempt == int(number))
    ).first()


def is_running(engine: Engine, attempt: Path) -> bool:
    with read_session(engine) as session:
        run = find_run(session, attempt)
        return run is not None and run.status is StageStatus.RUNNING


def may_lose(engine: Engine, worker_pid: int) -> bool:
    """Whether what this worker runs may die: one more death would not be the last that the rule of three deaths allows."""
    with read_session(engine) as session:
        held = select(StageRun).join(Worker, col(Worker.id) == StageRun.worker_id)
        for run in session.exec(held.where(Worker.pid == worker_pid, StageRun.status == StageStatus.RUNNING)):
            before = next(stage_runs.earlier_attempts(session, run), None)
            deaths = recovery.count_deaths(session, before, LONG_AGO) if before else 0
            if deaths + 1 >= recovery.MAX_DEATHS and not stage_runs.has_checkpoint(session, run):
                return False
    return True


def find_stale_writes(session: Session) -> list[str]:
    rows = session.connection().exec_driver_sql("SELECT what, stage_run_id, at FROM chaos_stale")
    return [f"{what} of {run_id} at {at}" for what, run_id, at in rows]
