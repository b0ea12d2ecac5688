"""What can be done with a job, one function each. The caller's transaction makes it whole."""

from sqlalchemy import Engine
from sqlmodel import Session

from app import blobs
from app.artifacts import repository as artifacts
from app.errors import Conflict, NotAvailable
from app.jobs import repository, stage_runs
from app.jobs.spec import SPEC_VERSION, JobSpec, count_warmup
from app.jobs.states import EventType, JobStatus, Stage
from app.jobs.validation import validate
from app.models import Job, now
from app.settings import Settings
from app.storage import Storage


def create(session: Session, settings: Settings, spec: JobSpec) -> Job:
    """Queues the job's first stage. InvalidSpec, with everything that is wrong, and nothing is queued."""
    validate(session, settings, spec)
    job = Job(
        name=spec.name,
        base_model=spec.base_model,
        priority=spec.priority,
        spec=resolve(spec).model_dump(mode="json"),
        spec_version=SPEC_VERSION,
        stage=Stage.PREPARE,
    )
    repository.add(session, job, spec.labels)
    stage_runs.enqueue(session, job=job, stage=Stage.PREPARE)
    repository.record_event(session, job, EventType.JOB_QUEUED, "The job was queued.")
    return job


def resolve(spec: JobSpec) -> JobSpec:
    """Settles what depends on nothing but the spec; stages settle the rest."""
    training = spec.training.model_copy()
    if training.max_steps is not None:
        training.warmup_steps = count_warmup(training.max_steps, training)
    elif training.epochs is None:
        training.epochs = 1.0
    return spec.model_copy(update={"training": training})


def cancel(session: Session, job_id: str) -> Job:
    """A job that waits ends at once; one that a worker has ends when the worker has stopped its stage."""
    job = repository.get(session, job_id, lock=True)
    if JobStatus(job.status).is_terminal:
        raise Conflict(f"{job_id} has ended: it is {job.status}.", param="job_id", code="job_ended")
    job.cancel_requested_at = job.cancel_requested_at or now()
    session.add(job)
    if stage_runs.cancel_waiting(session, job):
        repository.set_status(session, job, JobStatus.CANCELLED, "The job was cancelled before a worker took it up.")
    return job


def delete(session: Session, job_id: str) -> set[str]:
    """Removes the rows; answers the hashes of what the job made, for `remove_content` after the commit."""
    job = repository.get(session, job_id, lock=True)
    if job.status is JobStatus.RUNNING:
        raise Conflict(
            f"{job_id} is running. POST /v1/jobs/{job_id}/cancel stops it first.", param="job_id", code="job_running"
        )
    hashes = {artifact.blob_sha256 for artifact, _ in artifacts.list_of(session, [job_id])}
    session.delete(job)
    blobs.drop_unused(session, hashes)
    return hashes


def remove_content(engine: Engine, storage: Storage, job_id: str, hashes: set[str]) -> None:
    storage.remove_job(job_id)
    blobs.remove_dropped(engine, storage, hashes)


def not_available(what: str) -> NotAvailable:
    return NotAvailable(f"{what} is not available in this version.")
