"""Makes OpenAI's objects from the rows of jobs."""

import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Literal

from sqlmodel import Session

from app.artifacts import repository as artifacts
from app.files import repository as files
from app.jobs.spec import JobSpec
from app.jobs.states import EventType, JobStatus, Stage
from app.models import Checkpoint, Event, Job, now
from app.openai import schemas
from app.openai.request import DEFAULTS, PARAMS

LEVELS: dict[EventType, Literal["warn", "error"]] = {
    EventType.JOB_WARNING: "warn",
    EventType.STAGE_FAILED: "error",
    EventType.JOB_FAILED: "error",
}


def present_all(session: Session, jobs: Sequence[Job]) -> list[schemas.FineTuningJob]:
    """Two queries, however many jobs."""
    ids = [job.id for job in jobs]
    results = files.results_of(session, ids)
    with_model = artifacts.find_owners(session, ids)
    return [show_job(job, results.get(job.id, []), job.id in with_model) for job in jobs]


def show_job(job: Job, result_files: list[str], has_model: bool) -> schemas.FineTuningJob:
    spec = JobSpec.model_validate(job.spec)
    hub = spec.dataset.hub
    hyperparameters = show_hyperparameters(job, spec)
    return schemas.FineTuningJob(
        id=job.id,
        created_at=int(job.created_at.timestamp()),
        finished_at=int(job.finished_at.timestamp()) if job.finished_at else None,
        estimated_finish=estimate_finish(job),
        model=job.base_model,
        fine_tuned_model=name_model(job) if has_model and job.status is JobStatus.SUCCEEDED else None,
        organization_id=job.tenant_id,
        status=show_status(job),
        hyperparameters=hyperparameters,
        method=show_method(spec, hyperparameters),
        training_file=spec.dataset.file or (hub.repo if hub else ""),
        validation_file=spec.dataset.validation_file,
        result_files=result_files,
        trained_tokens=(job.progress or {}).get("trained_tokens") if job.status is JobStatus.SUCCEEDED else None,
        error=show_error(job.error) if job.status is JobStatus.FAILED else None,
        seed=spec.training.seed,
        integrations=[],
        metadata=spec.labels or None,
    )


def name_model(job: Job) -> str:
    """`ft:BASE:TENANT:SUFFIX:JOB`, as OpenAI's; the suffix is the job's name, reduced to what a URL and a shell leave alone."""
    suffix = re.sub(r"[^a-z0-9._]+", "-", (job.name or "").lower()).strip("-")
    return f"ft:{job.base_model}:{job.tenant_id}:{suffix[:64]}:{job.id}"


def show_status(job: Job) -> Any:
    if job.status is JobStatus.RUNNING and job.stage is Stage.PREPARE:
        return "validating_files"
    return JobStatus(job.status).value


def estimate_finish(job: Job) -> int | None:
    seconds = (job.progress or {}).get("eta_seconds")
    if job.status is not JobStatus.RUNNING or job.stage is not Stage.TRAIN or seconds is None:
        return None
    return int((now() + timedelta(seconds=seconds)).timestamp())


def show_hyperparameters(job: Job, spec: JobSpec) -> schemas.ResolvedHyperparameters:
    training, counts = spec.training, job.data or {}
    rows, packed = counts.get("rows"), counts.get("packed_rows")
    per_step = training.batch_size * training.gradient_accumulation
    batch_size: int | Literal["auto"] = per_step
    if training.packing:  # a packed row holds several examples
        batch_size = max(1, round(per_step * rows / packed)) if rows and packed else "auto"
    n_epochs: int | Literal["auto"] = max(1, round(training.epochs or 1))
    if training.max_steps is not None:
        n_epochs = max(1, round(training.max_steps * per_step / packed)) if packed else "auto"
    multiplier = round(training.learning_rate / DEFAULTS.learning_rate, 6)
    return schemas.ResolvedHyperparameters(n_epochs=n_epochs, batch_size=batch_size, learning_rate_multiplier=multiplier)


def show_method(spec: JobSpec, resolved: schemas.ResolvedHyperparameters) -> schemas.SupervisedMethod | schemas.DpoMethod:
    if spec.method != "dpo":
        return schemas.SupervisedMethod(supervised={"hyperparameters": resolved})
    with_beta = schemas.ResolvedDpoHyperparameters(**resolved.model_dump(), beta=spec.preference.beta)
    return schemas.DpoMethod(dpo={"hyperparameters": with_beta})


def show_error(error: dict[str, Any] | None) -> schemas.JobError | None:
    if error is None:
        return None
    param = error.get("param")
    return schemas.JobError(
        code=error["code"],
        message=" ".join(filter(None, (error["message"], error.get("hint")))),
        param=PARAMS.get(param or "", param),
    )


def show_event(event: Event) -> schemas.FineTuningEvent:
    is_checkpoint = event.type is EventType.JOB_CHECKPOINT
    data = event.data | {"event": event.type}
    if is_checkpoint:
        data |= show_metrics(event.data["step"], event.data["metrics"]).model_dump(exclude_none=True)
    return schemas.FineTuningEvent(
        id=event.id,
        created_at=int(event.created_at.timestamp()),
        level=LEVELS.get(event.type, "info"),
        message=event.message,
        type="metrics" if is_checkpoint else "message",
        data=data,
    )


def show_checkpoint(job: Job, row: Checkpoint) -> schemas.FineTuningCheckpoint:
    return schemas.FineTuningCheckpoint(
        id=row.id,
        created_at=int(row.created_at.timestamp()),
        fine_tuned_model_checkpoint=f"{name_model(job)}:ckpt-step-{row.step}",
        fine_tuning_job_id=job.id,
        step_number=row.step,
        metrics=show_metrics(row.step, row.metrics),
    )


def show_metrics(step: int, point: dict[str, Any]) -> schemas.CheckpointMetrics:
    """Our evaluations are of all held-out rows, so they are OpenAI's `full_valid` ones."""
    return schemas.CheckpointMetrics(
        step=step,
        train_loss=point.get("loss"),
        full_valid_loss=point.get("eval_loss"),
        full_valid_mean_token_accuracy=point.get("eval_accuracy"),
    )
