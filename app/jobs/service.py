"""What can be done with a job, one function each. The caller's transaction makes it whole."""

from itertools import takewhile
from typing import Any

from sqlalchemy import Engine
from sqlmodel import Session

from app import blobs, quotas
from app.artifacts import repository as artifacts
from app.errors import Conflict, Detail, InvalidSpec, NotAvailable
from app.files import repository as files
from app.jobs import lineage, recovery, repository, stage_runs
from app.jobs.adoption import adopt
from app.jobs.keys import stage_keys
from app.jobs.spec import SPEC_VERSION, JobSpec, count_warmup, merged
from app.jobs.states import HELD, EventType, FailureCode, JobStatus, Stage, StageStatus
from app.jobs.validation import validate
from app.models import Job, StageRun, now
from app.settings import Settings
from app.storage import Storage
from app.tenancy import tenant_of


def create(session: Session, settings: Settings, spec: JobSpec) -> Job:
    """Queues the job's first stage. InvalidSpec, with everything that is wrong, and nothing is queued."""
    spec = adopt(session, Storage(settings.root), spec)
    validate(session, settings, spec)
    quotas.check_jobs(session, settings)
    job = Job(
        tenant_id=tenant_of(session),
        name=spec.name,
        base_model=spec.base_model,
        priority=spec.priority,
        spec=resolve(lineage.inherit(session, spec)).model_dump(mode="json"),
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
    """A job that waits or is paused ends at once; one that a worker has ends when the worker has stopped its stage."""
    job = repository.get(session, job_id, lock=True)
    refuse_ended(job)
    job.cancel_requested_at = job.cancel_requested_at or now()
    session.add(job)
    if stage_runs.cancel_waiting(session, job) or job.status is JobStatus.PAUSED:
        recovery.heed(session, job)
    return job


def pause(session: Session, job_id: str) -> Job:
    """A job that waits is paused at once; one that a worker has when the worker has let its stage save and leave."""
    job = repository.get(session, job_id, lock=True)
    refuse_ended(job)
    if job.cancel_requested_at:
        raise Conflict(f"{job_id} is being cancelled.", param="job_id", code="job_ended")
    if job.status is JobStatus.PAUSED:
        return job
    job.pause_requested_at = job.pause_requested_at or now()
    session.add(job)
    if stage_runs.cancel_waiting(session, job):
        recovery.heed(session, job)
    return job


def refuse_ended(job: Job) -> None:
    if JobStatus(job.status).is_terminal:
        raise Conflict(f"{job.id} has ended: it is {job.status}.", param="job_id", code="job_ended")


def resume(session: Session, job_id: str) -> Job:
    """Queues the stage that the pause stopped, or takes back a pause that no worker has carried out yet."""
    job = repository.get(session, job_id, lock=True)
    if job.status is JobStatus.PAUSED:
        repository.set_status(session, job, JobStatus.QUEUED, "The job was resumed.", {"stage": job.stage})
        queue_next_attempt(session, job)
    elif job.pause_requested_at is None:
        raise Conflict(f"{job_id} is {job.status}, not paused.", param="job_id", code="job_not_paused")
    job.pause_requested_at = None
    session.add(job)
    return job


def queue_next_attempt(session: Session, job: Job) -> None:
    """Of the job's current stage."""
    stage = Stage(job.stage or Stage.PREPARE)
    last = stage_runs.last_attempt(session, job.id, stage)
    stage_runs.enqueue(session, job=job, stage=stage, attempt=last.attempt + 1 if last else 1)


def plan_retry(session: Session, settings: Settings, job_id: str, overrides: dict[str, Any]) -> JobSpec:
    """The spec that a retry would run with. Conflict for a job that did not fail; ValidationError or InvalidSpec for overrides
    that cannot be; QuotaExceeded. Reads only: the hub may be asked, and no writer shall wait for it."""
    job = repository.get(session, job_id)
    refuse_retry(job)
    spec = resolve(JobSpec.model_validate(merged(job.spec, with_one_length(overrides))))
    if spec.max_runtime_seconds is not None and stage_runs.busy_seconds(session, job_id) >= spec.max_runtime_seconds:
        message = "max_runtime_seconds: the job has used up this time already. Allow more, or null for no limit."
        patch = {"max_runtime_seconds": 2 * spec.max_runtime_seconds}
        raise InvalidSpec.of([Detail("max_runtime_seconds", message, patch=patch)])
    spec = adopt(session, Storage(settings.root), spec)
    validate(session, settings, spec)
    quotas.check_jobs(session, settings)
    return lineage.inherit(session, spec)


def refuse_retry(job: Job) -> None:
    if job.status not in (JobStatus.FAILED, JobStatus.CANCELLED):
        message = f"{job.id} is {job.status}. Only a job that failed or was cancelled can be retried."
        raise Conflict(message, param="job_id", code="job_not_failed")


def with_one_length(overrides: dict[str, Any]) -> dict[str, Any]:
    """`max_steps` takes the place of `epochs`, and the other way round: the stored spec has one of them."""
    training = overrides.get("training")
    if not isinstance(training, dict):
        return overrides
    for given, other in (("max_steps", "epochs"), ("epochs", "max_steps")):
        if training.get(given) is not None and other not in training:
            return overrides | {"training": training | {other: None}}
    return overrides


def retry(session: Session, job_id: str, spec: JobSpec, overrides: dict[str, Any]) -> tuple[Job, set[str]]:
    """Queues the first stage that has not succeeded with what `spec` says of it. Earlier stages are kept; what later ones made
    from other inputs is taken away. Also answers the hashes of the latter, for `blobs.remove_dropped` after the commit."""
    job = repository.get(session, job_id, lock=True)
    refuse_retry(job)
    job.spec, job.priority, job.name, job.base_model = spec.model_dump(mode="json"), spec.priority, spec.name, spec.base_model
    repository.set_labels(session, job, spec.labels)
    job.cancel_requested_at = job.pause_requested_at = job.error = None
    job.stage, outdated = find_first_stage(session, job)
    hashes = artifacts.remove(session, job.id, [file["name"] for run in outdated for file in (run.outputs or {})["files"]])
    blobs.drop_unused(session, hashes)
    data = {"stage": job.stage, "reason": "asked", "patch": overrides or None}
    repository.set_status(session, job, JobStatus.QUEUED, f"The job was sent on its way again, from stage {job.stage}.", data)
    queue_next_attempt(session, job)
    return job, hashes


def find_first_stage(session: Session, job: Job) -> tuple[Stage, list[StageRun]]:
    """The first stage whose newest success does not have the key that it would have now, and what has outputs from there on.

    What was found not to be the model that was trained does not count: it is made again.
    """
    keys = stage_keys(job.spec)
    newest = {run.stage: run for run in stage_runs.attempts(session, job.id) if run.status is StageStatus.SUCCEEDED}
    verified = stage_runs.last_attempt(session, job.id, Stage.VERIFY)
    refuted = verified is not None and (verified.error or {}).get("code") == FailureCode.VERIFICATION_FAILED
    if refuted:
        keys |= dict.fromkeys(keys.keys() & {*HELD}, "")
    stages = list(keys)
    kept = list(takewhile(lambda stage: stage in newest and newest[stage].key == keys[stage], stages))
    first = stages[min(len(kept), len(stages) - 1)]
    outdated = [run for stage, run in newest.items() if stage not in kept]
    return first, [*outdated, verified] if verified and refuted and verified.outputs else outdated


def delete(session: Session, job_id: str) -> set[str]:
    """Removes the rows; answers the hashes of what the job made, for `remove_content` after the commit."""
    job = repository.get(session, job_id, lock=True)
    if job.status is JobStatus.RUNNING:
        raise Conflict(
            f"{job_id} is running. POST /v1/jobs/{job_id}/cancel stops it first.", param="job_id", code="job_running"
        )
    refuse_successor(session, job_id)
    hashes = {artifact.blob_sha256 for artifact, _ in artifacts.list_of(session, [job_id])} | files.hashes_of(session, job_id)
    session.delete(job)
    blobs.drop_unused(session, hashes)
    return hashes


def refuse_successor(session: Session, job_id: str) -> None:
    successor = lineage.find_successor(session, job_id)
    if successor is not None:
        message = f"{successor} needs what this job has trained. Cancel that job or wait for its end."
        raise Conflict(message, param="job_id", code="job_in_use")


def delete_model(session: Session, job_id: str) -> set[str]:
    """Of a job that succeeded: removes its artifacts and keeps what is known of it; the hashes are for `remove_content`."""
    refuse_successor(session, job_id)
    names = [artifact.name for artifact, _ in artifacts.list_of(session, [job_id])]
    hashes = artifacts.remove(session, job_id, names)
    blobs.drop_unused(session, hashes)
    return hashes


def remove_content(engine: Engine, storage: Storage, job_id: str, hashes: set[str]) -> None:
    storage.remove_job(job_id)
    blobs.remove_dropped(engine, storage, hashes)


def not_available(what: str) -> NotAvailable:
    return NotAvailable(f"{what} is not available in this version.")
