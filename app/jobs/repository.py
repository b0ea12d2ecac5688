"""SQL about jobs, their events and metrics. Nothing here commits."""

from typing import Any

from sqlalchemy import update
from sqlmodel import Session, col

from app.errors import NotFound
from app.jobs.states import TRANSITIONS, EventType, JobStatus
from app.models import Event, Job, now

EVENT_OF_STATUS = {
    JobStatus.RUNNING: EventType.JOB_STARTED,
    JobStatus.SUCCEEDED: EventType.JOB_SUCCEEDED,
    JobStatus.FAILED: EventType.JOB_FAILED,
    JobStatus.CANCELLED: EventType.JOB_CANCELLED,
}


class InvalidTransition(Exception):
    """A job was asked to go where the transition map has no way to."""


def get(session: Session, job_id: str) -> Job:
    job = session.get(Job, job_id)
    if job is None:
        raise NotFound(f"There is no job {job_id!r}. GET /v1/jobs lists the jobs.", param="id", code="job_not_found")
    return job


def set_status(session: Session, job: Job, status: JobStatus, message: str, data: dict[str, Any] | None = None) -> None:
    """The only way a job's status changes: along the map, with its event, in the caller's transaction."""
    if status not in TRANSITIONS[JobStatus(job.status)]:
        raise InvalidTransition(f"{job.id}: {job.status} to {status}")
    job.status = status
    if status is JobStatus.RUNNING:
        job.started_at = job.started_at or now()
    if status.is_terminal:
        job.finished_at = now()
    session.add(job)
    record_event(session, job, EVENT_OF_STATUS[status], message, data)


def record_event(session: Session, job: Job, type: EventType, message: str, data: dict[str, Any] | None = None) -> Event:
    """Numbered by the database, so that two writers never give the same number."""
    session.flush()
    statement = update(Job).where(col(Job.id) == job.id).values(event_count=Job.event_count + 1).returning(col(Job.event_count))
    number = session.execute(statement, execution_options={"synchronize_session": False}).scalar_one()
    event = Event(job_id=job.id, tenant_id=job.tenant_id, number=number, type=type, message=message, data=data or {})
    session.add(event)
    return event
