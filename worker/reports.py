"""Writes down what a stage reports about its job. Of a file's stages only the progress is kept."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
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
    overlays: dict[str, dict[str, Any]] = {}
    for report in reports:
        kind = report["kind"]
        data = {key: value for key, value in report.items() if key not in ("kind", "time")}
        if kind in COLUMNS:
            overlays.setdefault(COLUMNS[kind], {}).update(data)
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
    for column, overlay in overlays.items():
        setattr(job, column, (getattr(job, column) or {}) | overlay)
    if points:
        session.add(MetricChunk(job_id=job.id, stage_run_id=run.id, points=points))
    session.add(job)


def note_progress(session: Session, run: StageRun, reports: list[dict[str, Any]]) -> None:
    """How far a run without a job is, in its outputs until those are there."""
    said = [report["message"] for report in reports if report["kind"] == "progress" and "message" in report]
    if said:
        run.outputs = {"progress": said[-1]}
        session.add(run)


def catch_up(session: Session, job: Job, run: StageRun, earlier: Iterable[Path]) -> None:
    """Stores the points that an attempt before `run` reported and that its worker did not live to store: without them a
    training that goes on from the last checkpoint would leave a hole in its losses. `earlier` are folders, newest first."""
    reported = next(filter(None, map(read_points, earlier)), [])
    last = jobs.last_metric_step(session, job.id)
    points = [point for point in reported if point["step"] > last]
    if points:
        session.add(MetricChunk(job_id=job.id, stage_run_id=run.id, points=points))


def read_points(attempt: Path) -> list[dict[str, Any]]:
    return [point for report in read_reports(attempt)[0] if report["kind"] == "metrics" for point in report["points"]]


def read_reports(attempt: Path, position: int = 0) -> tuple[list[dict[str, Any]], int]:
    """An attempt's reports from byte `position` on, and the position after them. A line that is not yet whole waits."""
    path = attempt / "events.jsonl"
    if not path.exists():
        return [], position
    with path.open("rb") as file:
        file.seek(position)
        whole, newline, _ = file.read().rpartition(b"\n")
    return [json.loads(line) for line in whole.splitlines()], position + len(whole) + len(newline)


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
