"""Writes down what a stage reports about its job. Of a file's stages only the progress is kept."""

import logging
from typing import Any

from sqlmodel import Session

from app.jobs import repository as jobs
from app.jobs.spec import merged
from app.jobs.states import EventType
from app.models import Checkpoint, Job, MetricChunk, StageRun

log = logging.getLogger(__name__)

COLUMNS = {"progress": "progress", "data": "data", "memory": "memory", "summary": "metrics"}
"""Reports that are laid over what a column of the job holds."""


def apply_reports(session: Session, job: Job, run: StageRun, reports: list[dict[str, Any]]) -> None:
    points: list[dict[str, Any]] = []
    for report in reports:
        kind = report["kind"]
        data = {key: value for key, value in report.items() if key not in ("kind", "time")}
        if kind in COLUMNS:
            setattr(job, COLUMNS[kind], (getattr(job, COLUMNS[kind]) or {}) | data)
        elif kind == "metrics":
            points += data["points"]
        elif kind == "resolved":
            job.spec = merged(job.spec, data["spec"])
        elif kind == "checkpoint":
            add_checkpoint(session, job, run, data)
        elif kind == "warning":
            message = data.pop("message")
            jobs.record_event(session, job, EventType.JOB_WARNING, message, {"stage": run.stage} | data)
        else:
            log.warning("%s attempt %d of %s reported the unknown kind %r", run.stage, run.attempt, job.id, kind)
    if points:
        session.add(MetricChunk(job_id=job.id, stage_run_id=run.id, points=points))
    session.add(job)


def note_progress(session: Session, run: StageRun, reports: list[dict[str, Any]]) -> None:
    """How far a run without a job is, in its outputs until those are there."""
    said = [report["message"] for report in reports if report["kind"] == "progress" and "message" in report]
    if said:
        run.outputs = {"progress": said[-1]}
        session.add(run)


def add_checkpoint(session: Session, job: Job, run: StageRun, data: dict[str, Any]) -> None:
    checkpoint = Checkpoint(
        tenant_id=job.tenant_id,
        job_id=job.id,
        stage_run_id=run.id,
        step=data["step"],
        bytes=data["bytes"],
        metrics=data.get("metrics") or {},
    )
    session.add(checkpoint)
    event = {"id": checkpoint.id, "step": checkpoint.step, "bytes": checkpoint.bytes, "metrics": checkpoint.metrics}
    jobs.record_event(session, job, EventType.JOB_CHECKPOINT, f"Checkpoint at step {checkpoint.step}.", event)
