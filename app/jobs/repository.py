"""SQL about jobs, their events and metrics. Nothing here commits."""

from typing import Any

import sqlalchemy
from sqlalchemy import ColumnElement, bindparam, delete, exists, update
from sqlmodel import Session, SQLModel, col, select

from app.errors import NotFound
from app.jobs.states import TRANSITIONS, EventType, JobStatus
from app.looks import Look, read_rows
from app.models import Artifact, Checkpoint, Event, Job, JobLabel, MetricChunk, StageRun, now
from app.tenancy import owned, sees
from app.webhooks import outbox

JOB = SQLModel.metadata.tables["job"]
ONE = sqlalchemy.select(JOB).where(JOB.c.id == bindparam("job_id"))
"""Built once."""


class InvalidTransition(Exception):
    """A job was asked to go where the transition map has no way to."""


def get(session: Session, job_id: str, *, lock: bool = False) -> Job:
    """With `lock`, nobody else changes the job before the caller's transaction ends."""
    job = find(session, job_id, lock=lock)
    if job is None:
        raise not_there(job_id)
    return job


def not_there(job_id: str) -> NotFound:
    return NotFound(f"There is no job {job_id!r}. GET /v1/jobs lists the jobs.", param="job_id", code="job_not_found")


def look(session: Session | Look, job_id: str) -> Job:
    """As `get`, to be read only."""
    found = read_rows(session, ONE, job_id=job_id)
    if not found or not sees(session, found[0]):
        raise not_there(job_id)
    return found[0]


def find(session: Session, job_id: str, *, lock: bool = False) -> Job | None:
    job = session.get(Job, job_id, with_for_update=lock or None)
    return job if job and sees(session, job) else None


def page(
    session: Session,
    *,
    limit: int,
    after: str | None,
    status: JobStatus | None = None,
    base_model: str | None = None,
    labels: dict[str, str],
    unlabelled: bool = False,
) -> list[Job]:
    """Newest first: one more than `limit` where there are more. `unlabelled`: only jobs without labels."""
    statement = select(Job).where(owned(session, Job)).order_by(col(Job.id).desc()).limit(limit + 1)
    if after is not None:
        statement = statement.where(Job.id < after)
    if status is not None:
        statement = statement.where(Job.status == status)
    if base_model is not None:
        statement = statement.where(Job.base_model == base_model)
    for key, value in labels.items():
        labelled = select(JobLabel.job_id).where(JobLabel.key == key, JobLabel.value == value)
        statement = statement.where(col(Job.id).in_(labelled))
    if unlabelled:
        statement = statement.where(~exists().where(col(JobLabel.job_id) == col(Job.id)))
    return list(session.exec(statement))


def add(session: Session, job: Job, labels: dict[str, str]) -> None:
    session.add(job)
    session.flush()
    set_labels(session, job, labels)


def set_labels(session: Session, job: Job, labels: dict[str, str]) -> None:
    session.execute(delete(JobLabel).where(col(JobLabel.job_id) == job.id))
    session.add_all(JobLabel(job_id=job.id, key=key, value=value) for key, value in labels.items())


def set_status(session: Session, job: Job, status: JobStatus, message: str, data: dict[str, Any] | None = None) -> None:
    """The only way a job's status changes: along the map, with its event, in the caller's transaction."""
    event = TRANSITIONS[JobStatus(job.status)].get(status)
    if event is None:
        raise InvalidTransition(f"{job.id}: {job.status} to {status}")
    job.status = status
    if status is JobStatus.QUEUED:
        job.queued_at = now()
    elif status is JobStatus.RUNNING:
        job.started_at = job.started_at or now()
    job.finished_at = None
    if status.is_terminal:
        job.finished_at, job.pause_requested_at = now(), None
    session.add(job)
    record_event(session, job, event, message, data)


def record_event(session: Session, job: Job, type: EventType, message: str, data: dict[str, Any] | None = None) -> Event:
    """Numbered by the database, so that two writers never give the same number; webhooks that tell of it are queued. Its data
    name the request that caused it."""
    session.flush()
    statement = update(Job).where(col(Job.id) == job.id).values(event_count=Job.event_count + 1).returning(col(Job.event_count))
    number = session.execute(statement, execution_options={"synchronize_session": False}).scalar_one()
    cause = {"request_id": session.info["request_id"]} if "request_id" in session.info else {}
    data = (data or {}) | cause
    event = Event(job_id=job.id, tenant_id=job.tenant_id, number=number, type=type, message=message, data=data)
    session.add(event)
    outbox.announce(session, job, event)
    return event


def find_event_number(session: Session, job_id: str, event_id: str) -> int | None:
    return session.exec(select(Event.number).where(Event.job_id == job_id, Event.id == event_id)).first()


def events(session: Session, job_id: str, *, after: int = 0, limit: int | None = None) -> list[Event]:
    """Oldest first, from the number that follows `after`; with a limit, one more than it where there are more."""
    statement = select(Event).where(Event.job_id == job_id, Event.number > after).order_by(col(Event.number))
    return list(session.exec(statement if limit is None else statement.limit(limit + 1)))


def newest_events(session: Session, job_id: str, *, before: int | None, limit: int) -> list[Event]:
    """Newest first, from the number before `before`: one more than `limit` where there are more."""
    statement = select(Event).where(Event.job_id == job_id).order_by(col(Event.number).desc()).limit(limit + 1)
    return list(session.exec(statement if before is None else statement.where(Event.number < before)))


def metric_chunks(session: Session, job_id: str) -> list[MetricChunk]:
    """In the order in which they were written."""
    return list(session.exec(select(MetricChunk).where(MetricChunk.job_id == job_id).order_by(col(MetricChunk.id))))


def last_metric_step(session: Session, job_id: str) -> int:
    """The step of the point that was written last, 0 when there is none."""
    statement = select(MetricChunk).where(MetricChunk.job_id == job_id).order_by(col(MetricChunk.id).desc()).limit(1)
    chunk = session.exec(statement).first()
    return int(chunk.points[-1]["step"]) if chunk and chunk.points else 0


def checkpoints(session: Session, job_id: str) -> list[tuple[Checkpoint, StageRun]]:
    """By step, each with the attempt that wrote it."""
    statement = select(Checkpoint, StageRun).join(StageRun).where(Checkpoint.job_id == job_id)
    statement = statement.order_by(col(Checkpoint.step), col(Checkpoint.created_at))
    return [(checkpoint, run) for checkpoint, run in session.exec(statement)]


def newest_checkpoints(session: Session, job_id: str, *, before: str | None, limit: int) -> list[Checkpoint]:
    """Newest first, from the one before the id `before`: one more than `limit` where there are more."""
    statement = select(Checkpoint).where(Checkpoint.job_id == job_id).order_by(col(Checkpoint.id).desc()).limit(limit + 1)
    return list(session.exec(statement if before is None else statement.where(Checkpoint.id < before)))


def jobs_with_models(session: Session) -> list[Job]:
    """Those that succeeded and whose artifacts are still there, newest first."""
    return list(session.exec(select(Job).where(owned(session, Job), has_model()).order_by(col(Job.id).desc())))


def find_with_model(session: Session, job_id: str) -> Job | None:
    return session.exec(select(Job).where(owned(session, Job), has_model(), Job.id == job_id)).first()


def has_model() -> ColumnElement[bool]:
    return (col(Job.status) == JobStatus.SUCCEEDED) & exists().where(col(Artifact.job_id) == col(Job.id))
