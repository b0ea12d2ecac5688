"""SQL about stage runs: queueing, claiming, leases and fences. Nothing here commits.

A claim raises the run's fence. Every later write of the claimer names that fence and does nothing, returning False, once the
run was taken from it: cancelled, ended, or claimed again. Times are those of the database server, or of the one host that
SQLite lives on.
"""

from collections.abc import Collection, Iterator
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy
from sqlalchemy import Select, bindparam, case, func, true, tuple_, update
from sqlmodel import Session, SQLModel, col, select

from app.jobs.states import Resource, Stage, StageStatus
from app.looks import Look, read_rows
from app.models import Checkpoint, File, Job, StageRun, Worker, now
from app.queue import ring


def read_clock(session: Session) -> datetime:
    if session.get_bind().dialect.name == "sqlite":
        return now()
    return session.execute(select(func.clock_timestamp())).scalar_one()


def enqueue(
    session: Session,
    *,
    job: Job | None = None,
    file: File | None = None,
    stage: Stage,
    attempt: int = 1,
    overrides: dict[str, Any] | None = None,
    key: str | None = None,
) -> StageRun:
    """Queues an attempt at a stage of `job`, or of `file`, and rings its queue."""
    owner = job or file
    if owner is None:
        raise ValueError("a stage run belongs to a job or to a file")
    request_id = session.info.get("request_id")
    if job is not None:
        job.request_id = request_id = request_id or job.request_id
    run = StageRun(
        tenant_id=owner.tenant_id,
        job_id=job.id if job else None,
        file_id=file.id if file else None,
        stage=stage,
        attempt=attempt,
        resource=stage.resource,
        overrides=overrides,
        key=key,
        request_id=request_id,
    )
    session.add(run)
    session.flush()
    ring(session, stage.resource)
    return run


def _in_order() -> tuple[Any, ...]:
    """Who is next: the highest priority, then the oldest job or upload. Needs the outer join with Job."""
    age = func.coalesce(col(Job.created_at), col(StageRun.created_at))
    return func.coalesce(col(Job.priority), 0).desc(), age, col(StageRun.created_at), col(StageRun.id)


def claim(session: Session, resource: Resource, worker_id: str, lease_seconds: float) -> StageRun | None:
    """Takes the best queued run of `resource`, or None. Of several callers exactly one gets it."""
    best = (
        select(StageRun.id)
        .join(Job, isouter=True)
        .where(StageRun.status == StageStatus.QUEUED, StageRun.resource == resource)
        .order_by(*_in_order())
        .limit(1)
        .with_for_update(skip_locked=True, of=StageRun)
        .scalar_subquery()
    )
    time = read_clock(session)
    statement = (
        update(StageRun)
        .where(col(StageRun.id) == best, col(StageRun.status) == StageStatus.QUEUED)
        .values(
            status=StageStatus.RUNNING,
            fence=StageRun.fence + 1,
            worker_id=worker_id,
            started_at=time,
            lease_until=time + timedelta(seconds=lease_seconds),
        )
        .returning(StageRun)
    )
    return session.scalars(statement, execution_options={"populate_existing": True}).one_or_none()


def _write(session: Session, run_id: str, fence: int, **values: Any) -> bool:
    held = (col(StageRun.id) == run_id, col(StageRun.fence) == fence, col(StageRun.status) == StageStatus.RUNNING)
    statement = update(StageRun).where(*held).values(**values).returning(StageRun)
    written = session.scalars(statement, execution_options={"populate_existing": True}).one_or_none()
    return written is not None


def extend(session: Session, run_id: str, fence: int, lease_seconds: float) -> bool:
    """The heartbeat of a claimed run. False: it was taken away, write nothing more."""
    return _write(session, run_id, fence, lease_until=read_clock(session) + timedelta(seconds=lease_seconds))


def finish(session: Session, run_id: str, fence: int, status: StageStatus, **values: Any) -> bool:
    """Ends a claimed run; `values` are columns such as `outputs`, `error` and `peak_host_bytes`."""
    return _write(session, run_id, fence, status=status, finished_at=read_clock(session), lease_until=None, **values)


def take_back(session: Session, run: StageRun, error: dict[str, Any], *, at_once: bool = False) -> bool:
    """Fails a run whose lease has expired and raises its fence, so that its worker can write nothing more.

    `at_once` does not wait for the lease: the worker is known to be dead.
    """
    time = read_clock(session)
    statement = (
        update(StageRun)
        .where(
            col(StageRun.id) == run.id,
            col(StageRun.fence) == run.fence,
            col(StageRun.status) == StageStatus.RUNNING,
            true() if at_once else col(StageRun.lease_until) < time,
        )
        .values(status=StageStatus.FAILED, fence=StageRun.fence + 1, finished_at=time, lease_until=None, error=error)
        .returning(StageRun)
    )
    return session.scalars(statement, execution_options={"populate_existing": True}).one_or_none() is not None


def find(session: Session, run_id: str) -> StageRun | None:
    return session.get(StageRun, run_id)


def expired(session: Session) -> list[StageRun]:
    """Running, but with nobody who has extended the lease in time."""
    late = col(StageRun.lease_until) < read_clock(session)
    return list(session.exec(select(StageRun).where(StageRun.status == StageStatus.RUNNING, late)))


def held_by(session: Session, worker_id: str) -> list[StageRun]:
    """What a worker runs, or has left running when it died."""
    held = (StageRun.worker_id == worker_id, StageRun.status == StageStatus.RUNNING)
    return list(session.exec(select(StageRun).where(*held)))


def waiting(session: Session) -> dict[Resource, int]:
    """How many runs are queued for each resource that has any."""
    statement = (
        select(StageRun.resource, func.count()).where(StageRun.status == StageStatus.QUEUED).group_by(col(StageRun.resource))
    )
    return {Resource(resource): count for resource, count in session.exec(statement)}


RUN, JOB = (SQLModel.metadata.tables[name] for name in ("stage_run", "job"))
SHOWN = [column for column in RUN.c if column.name not in ("outputs", "overrides")]


def _numbered() -> Select[Any]:
    """Runs of some jobs with their places in the queues, by numbering all that wait."""
    place = func.row_number().over(partition_by=col(StageRun.resource), order_by=_in_order()).label("place")
    queued = select(StageRun.id, place).join(Job, isouter=True).where(StageRun.status == StageStatus.QUEUED).subquery()
    runs = sqlalchemy.select(*SHOWN, queued.c.place).outerjoin(queued, RUN.c.id == queued.c.id)
    return runs.where(RUN.c.job_id.in_(bindparam("job_ids", expanding=True))).order_by(RUN.c.attempt)


def _counted() -> Select[Any]:
    """Those of one job, by counting those before it, which costs a fourth."""
    other, its_job = RUN.alias(), JOB.alias()
    orders = [
        tuple_(-func.coalesce(job.c.priority, 0), func.coalesce(job.c.created_at, run.c.created_at), run.c.created_at, run.c.id)
        for run, job in ((other, its_job), (RUN, JOB))
    ]
    before = sqlalchemy.select(func.count()).select_from(other.outerjoin(its_job)).correlate(RUN, JOB)
    before = before.where(other.c.status == StageStatus.QUEUED, other.c.resource == RUN.c.resource, orders[0] <= orders[1])
    place = case((RUN.c.status == StageStatus.QUEUED, before.scalar_subquery())).label("place")
    runs = sqlalchemy.select(*SHOWN, place).join_from(RUN, JOB)
    return runs.where(RUN.c.job_id == bindparam("job_id")).order_by(RUN.c.attempt)


ORDER = {stage: number for number, stage in enumerate(Stage)}
OF_JOBS, OF_JOB = _numbered(), _counted()
"""Built once: every look at a job asks one of them."""


def cancel_waiting(session: Session, job: Job) -> bool:
    """Cancels the job's queued runs. False when none was waiting: then a worker runs one, and has to be asked."""
    statement = (
        update(StageRun)
        .where(col(StageRun.job_id) == job.id, col(StageRun.status) == StageStatus.QUEUED)
        .values(status=StageStatus.CANCELLED, fence=StageRun.fence + 1, finished_at=read_clock(session))
        .returning(StageRun)
    )
    return bool(session.scalars(statement, execution_options={"populate_existing": True}).all())


def attempts(session: Session, job_id: str) -> list[StageRun]:
    """Every attempt at every stage of a job, oldest first."""
    statement = select(StageRun).where(StageRun.job_id == job_id)
    return list(session.exec(statement.order_by(col(StageRun.created_at), col(StageRun.id))))


def succeeded(session: Session, job_id: str, stages: Collection[Stage]) -> list[StageRun]:
    """The newest success of each of these stages that has one, in their order."""
    newest = {run.stage: run for run in attempts(session, job_id) if run.status is StageStatus.SUCCEEDED}
    return [newest[stage] for stage in stages if stage in newest]


def inspections(session: Session, file_id: str) -> list[StageRun]:
    return list(session.exec(select(StageRun).where(StageRun.file_id == file_id)))


def newest_by_stage(session: Session | Look, job_ids: Collection[str]) -> dict[str, list[Any]]:
    """By job id: the newest attempt of each stage that was ever queued, in the order of the stages; to be read only, and
    without its outputs. `place` is 1 for that which a worker of its kind claims next, and None for what does not wait."""
    if len(job_ids) == 1:
        found = read_rows(session, OF_JOB, job_id=next(iter(job_ids)))
    else:
        found = read_rows(session, OF_JOBS, job_ids=job_ids)
    newest: dict[str, dict[Stage, Any]] = {}
    for run in found:
        newest.setdefault(run.job_id, {})[run.stage] = run
    return {job_id: sorted(runs.values(), key=lambda run: ORDER[run.stage]) for job_id, runs in newest.items()}


def find_of_file(session: Session, file: File, stage: Stage, key: str | None = None) -> StageRun | None:
    """The newest run of a file's stage with this key."""
    statement = select(StageRun).where(StageRun.file_id == file.id, StageRun.stage == stage, StageRun.key == key)
    return session.exec(statement.order_by(col(StageRun.attempt).desc()).limit(1)).first()


def next_attempt(session: Session, file: File, stage: Stage) -> int:
    """A file's runs of one stage are numbered through, whatever their key."""
    statement = select(func.max(StageRun.attempt)).where(StageRun.file_id == file.id, StageRun.stage == stage)
    return (session.exec(statement).one() or 0) + 1


def earlier_attempts(session: Session, run: StageRun) -> Iterator[StageRun]:
    """The attempts at the same stage before `run`, newest first; of a file, those with the same key."""
    owner = StageRun.job_id == run.job_id if run.job_id else (StageRun.file_id == run.file_id) & (StageRun.key == run.key)
    statement = select(StageRun).where(owner, StageRun.stage == run.stage, StageRun.attempt < run.attempt)
    return iter(session.exec(statement.order_by(col(StageRun.attempt).desc())))


def last_attempt(session: Session, job_id: str, stage: Stage) -> StageRun | None:
    statement = select(StageRun).where(StageRun.job_id == job_id, StageRun.stage == stage)
    return session.exec(statement.order_by(col(StageRun.attempt).desc()).limit(1)).first()


def busy_seconds(session: Session, job_id: str) -> float:
    """How long workers have had the job, over all attempts at all stages, the one that runs included."""
    time = read_clock(session)
    runs = [run for run in attempts(session, job_id) if run.started_at]
    return sum(((run.finished_at or time) - run.started_at).total_seconds() for run in runs if run.started_at)


def has_checkpoint(session: Session, run: StageRun) -> bool:
    return session.exec(select(Checkpoint.id).where(Checkpoint.stage_run_id == run.id).limit(1)).first() is not None


def idle_queues(session: Session, alive_since: datetime) -> set[str]:
    """The queues that a live worker without work listens to."""
    idle = select(Worker).where(Worker.heartbeat_at >= alive_since, col(Worker.stage_run_id).is_(None))
    return {queue for worker in session.exec(idle) for queue in worker.queues}
