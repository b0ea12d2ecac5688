"""Decides what the end of an attempt means, in one fenced transaction: publish, fail, give back, try again, cancel."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from sqlmodel import Session

from app.disk import MAKE_SPACE
from app.jobs import recovery, stage_runs
from app.jobs.ladder import next_rung
from app.jobs.spec import merged
from app.jobs.states import FailureCode, Stage, StageStatus
from app.models import File, Job, StageRun
from app.storage import Storage
from worker.publication import publish_inspection, publish_right, publish_stage
from worker.reports import apply_reports


class Ending(StrEnum):
    """Why the supervisor stopped attending to a stage process."""

    BY_ITSELF = "ended by itself"
    CANCELLED = "stopped because the job was cancelled"
    PAUSED = "stopped because the job is to pause"
    TIMED_OUT = "stopped because the job's time is over"
    YIELDED = "stopped because the worker leaves"
    FENCED = "killed because the run was taken away"


@dataclass(frozen=True)
class Remains:
    """What a closed stage process left behind."""

    ending: Ending
    result: dict[str, Any] | None
    reports: list[dict[str, Any]]
    """Those that have not been stored yet."""
    out: Path
    end: str
    """How it ended, in words."""
    killed_for_memory: bool
    disk_was_full: bool = False
    """It could not even write its result."""


def settle(session: Session, storage: Storage, run_id: str, fence: int, remains: Remains) -> None:
    """Writes nothing when the fence is stale. A stage that was asked to stop may have succeeded all the same."""
    result = remains.result or {}
    status = result.get("status")
    made = "files" in result and (status == "succeeded" or remains.ending is Ending.BY_ITSELF)
    outputs = {"values": result["values"], "files": result["files"]} if made else None
    run = stage_runs.find(session, run_id)
    if run is None:
        return
    if status == "succeeded":
        ended, error = StageStatus.SUCCEEDED, None
    elif remains.ending is Ending.TIMED_OUT:
        limit = session.get_one(Job, run.job_id).spec["max_runtime_seconds"]
        ended, error = StageStatus.FAILED, recovery.timed_out(run, limit)
    elif remains.ending is not Ending.BY_ITSELF:
        ended, error = StageStatus.CANCELLED, None
    else:
        ended, error = StageStatus.FAILED, describe_failure(run, remains)
    peaks = {key: result.get(key) for key in ("peak_host_bytes", "peak_device_bytes")}
    if not stage_runs.finish(session, run_id, fence, ended, outputs=outputs, error=error, **peaks):
        return
    owner = recovery.load_owner(session, run)
    if isinstance(owner, Job):
        apply_reports(session, owner, run, remains.reports)
    if status == "succeeded":
        publish(session, storage, owner, run, remains.out)
    elif error is None:
        leave(session, owner, run)
    else:
        if outputs is not None and isinstance(owner, Job):
            publish_right(session, storage, owner, run, remains.out)
        fail_or_retry(session, owner, run, error)


def describe_failure(run: StageRun, remains: Remains) -> dict[str, Any]:
    if remains.result and remains.result["status"] == "failed":
        return remains.result["error"] | {"log": recovery.log_path(run)}
    error = recovery.lost(run, f"The process of stage {run.stage} {remains.end}.")
    if remains.disk_was_full:
        message = f"The disk was full: stage {run.stage} could not even write its result."
        return error | {"code": FailureCode.DISK_FULL, "message": message, "hint": f"{MAKE_SPACE}, then retry the job."}
    if not remains.killed_for_memory:
        return error
    message = f"The kernel killed the process of stage {run.stage}, because the host had no memory left."
    hint = "Give the host more memory, or lower training.batch_size or training.max_seq_length."
    return error | {"code": FailureCode.OUT_OF_MEMORY, "message": message, "hint": hint}


def publish(session: Session, storage: Storage, owner: Job | File, run: StageRun, out: Path) -> None:
    if isinstance(owner, File):
        if run.stage is not Stage.INSPECT:
            return  # asked for by the run's key, and answered from its outputs
        publish_inspection(session, owner, (run.outputs or {})["values"])
    else:
        publish_stage(session, storage, owner, run, out)


def leave(session: Session, owner: Job | File, run: StageRun) -> None:
    """Of a stage that was asked to stop. A pause may have been taken back in the meantime."""
    if isinstance(owner, Job) and recovery.heed(session, owner):
        return
    message = f"Stage {run.stage} was stopped before its end. It goes on where it was."
    recovery.queue_again(session, owner, run, reason="stopped", message=message)


def fail_or_retry(session: Session, owner: Job | File, run: StageRun, error: dict[str, Any]) -> None:
    if error["code"] == FailureCode.WORKER_LOST:
        recovery.recover(session, run)
    elif error["code"] == FailureCode.OUT_OF_MEMORY and isinstance(owner, Job) and run.stage is Stage.TRAIN:
        climb_down(session, owner, run, error)
    else:
        recovery.fail(session, owner, run, error)


def climb_down(session: Session, job: Job, run: StageRun, error: dict[str, Any]) -> None:
    """Trains again on the next rung of the ladder, if the spec allows and there is one."""
    training = job.spec["training"]
    is_base = error.get("param") in ("base_model", "quantization")  # the base alone is too large: no batch is small enough
    rung = next_rung(training) if training["oom_ladder"] and not is_base else None
    if rung is None:
        recovery.fail(session, job, run, error)
        return
    patch = {"training": rung}
    job.spec = merged(job.spec, patch)
    session.add(job)
    if recovery.heed(session, job):
        return
    change = ", ".join(f"training.{key} {value}" for key, value in rung.items())
    message = f"{error['message']} Trying again with {change}."
    overrides = merged(run.overrides or {}, patch)
    recovery.queue_again(session, job, run, reason=FailureCode.OUT_OF_MEMORY, message=message, overrides=overrides)
