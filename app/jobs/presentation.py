"""Makes what the API shows of jobs from their rows."""

from collections.abc import Sequence
from typing import Any

from sqlmodel import Session

from app.artifacts import repository as artifacts
from app.artifacts.schemas import Artifact
from app.files import repository as uploads
from app.jobs import metrics, report, repository, schemas, stage_runs
from app.jobs.spec import plan
from app.jobs.states import JobStatus, Stage, StageStatus
from app.jobs.tidying import is_whole
from app.looks import Look
from app.models import Checkpoint, Event, Job, StageRun
from app.storage import Storage


def present(session: Session | Look, job: Job, base_url: str) -> schemas.Job:
    return present_all(session, [job], base_url)[0]


def present_all(session: Session | Look, jobs: Sequence[Job], base_url: str) -> list[schemas.Job]:
    """Two queries, however many jobs."""
    ids = [job.id for job in jobs]
    runs = stage_runs.newest_by_stage(session, ids)
    files: dict[str, list[Artifact]] = {job_id: [] for job_id in ids}
    for row, size in artifacts.list_of(session, ids):
        files[row.job_id].append(Artifact.of(row, size, base_url))
    return [show_job(job, runs.get(job.id, []), files[job.id]) for job in jobs]


def show_job(job: Job, runs: list[Any], files: list[Artifact]) -> schemas.Job:
    return schemas.Job(
        id=job.id,
        name=job.name,
        status=job.status,
        stage=job.stage,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        cancel_requested_at=job.cancel_requested_at,
        pause_requested_at=job.pause_requested_at,
        queue_position=next((run.place for run in runs if run.place), None),
        attempts=max((run.attempt for run in runs), default=1),
        progress=schemas.Progress.model_validate(job.progress or {}),
        data=schemas.Data.model_validate(job.data or {}),
        metrics=schemas.Summary.model_validate(job.metrics or {}),
        memory=schemas.Memory.model_validate(job.memory or {}),
        stages=show_stages(job, runs),
        error=job.error,
        spec=job.spec,
        labels=job.spec["labels"],
        artifacts=files,
    )


def show_stages(job: Job, runs: list[StageRun]) -> list[schemas.StageAttempt]:
    """Every stage that the spec needs: its newest attempt, or that its turn has not come, or never will.

    What a retry has to do again counts as not done.
    """
    stages = plan(job.spec)
    reached = stages[: stages.index(Stage(job.stage or Stage.PREPARE)) + 1]
    newest = {run.stage: run for run in runs if run.stage in reached}
    unreached = StageStatus.CANCELLED if JobStatus(job.status).is_terminal else StageStatus.QUEUED
    return [
        show_attempt(newest[stage]) if stage in newest else schemas.StageAttempt(name=stage, status=unreached)
        for stage in stages
    ]


def show_attempt(run: StageRun) -> schemas.StageAttempt:
    seconds = (run.finished_at - run.started_at).total_seconds() if run.finished_at and run.started_at else None
    return schemas.StageAttempt(
        name=run.stage,
        status=run.status,
        attempt=run.attempt,
        worker=run.worker_id,
        started_at=run.started_at,
        finished_at=run.finished_at,
        duration_seconds=seconds,
        peak_host_bytes=run.peak_host_bytes,
        peak_device_bytes=run.peak_device_bytes,
        error=run.error,
    )


def show_event(event: Event) -> schemas.Event:
    return schemas.Event(
        id=event.id, job_id=event.job_id, type=event.type, message=event.message, data=event.data, created_at=event.created_at
    )


def load_checkpoints(session: Session, storage: Storage, job_id: str) -> list[schemas.Checkpoint]:
    return [show_checkpoint(row, run, storage) for row, run in repository.checkpoints(session, job_id)]


def show_checkpoint(row: Checkpoint, run: StageRun, storage: Storage) -> schemas.Checkpoint:
    return schemas.Checkpoint(
        id=row.id,
        step=row.step,
        attempt=run.attempt,
        created_at=row.created_at,
        metrics=row.metrics,
        bytes=row.bytes,
        resumable=is_whole(storage.checkpoint(row.job_id, run.attempt, row.step)),
    )


def load_points(session: Session, job_id: str) -> list[schemas.MetricPoint]:
    points = metrics.join_chunks(repository.metric_chunks(session, job_id))
    return [schemas.MetricPoint.model_validate(point) for point in points]


def load_report(session: Session, storage: Storage, job: Job, base_url: str) -> dict[str, Any]:
    runs = [run for run in stage_runs.attempts(session, job.id) if run.status is StageStatus.SUCCEEDED and run.outputs]
    file = uploads.find(session, job.spec["dataset"]["file"]) if job.spec["dataset"]["file"] else None
    return report.build(
        present(session, job, base_url).model_dump(mode="json"),
        stage_values={run.stage: run.outputs["values"] for run in runs if run.outputs},
        points=[point.model_dump(mode="json") for point in load_points(session, job.id)],
        checkpoints=[checkpoint.model_dump(mode="json") for checkpoint in load_checkpoints(session, storage, job.id)],
        events=[show_event(event).model_dump(mode="json") for event in repository.events(session, job.id)],
        filename=file.filename if file else None,
    )
