"""What becomes of a job, or of a file under inspection, when an attempt at a stage does not succeed.

Used by the worker that ran the attempt and by the reaper that finds it abandoned, in the transaction that ended the attempt.
"""

from datetime import datetime
from typing import Any

from sqlmodel import Session

from app.jobs import repository as jobs
from app.jobs import stage_runs
from app.jobs.states import EventType, FailureCode, JobStatus, Stage, StageStatus
from app.models import File, Job, StageRun

MAX_DEATHS = 3


def load_owner(session: Session, run: StageRun) -> Job | File:
    """The run's job, locked and as it is now, or its file."""
    if run.job_id:
        return session.get_one(Job, run.job_id, with_for_update=True, populate_existing=True)
    return session.get_one(File, run.file_id)


def log_path(run: StageRun) -> str:
    """Where the attempt's output is, below the folder of its job or file."""
    return f"{run.stage}/{run.attempt}/log.txt"


def lost(run: StageRun, message: str) -> dict[str, Any]:
    hint = "Read the stage's log, check the worker's host, then retry the job."
    return {
        "code": FailureCode.WORKER_LOST,
        "message": message,
        "hint": hint,
        "param": None,
        "patch": None,
        "log": log_path(run),
    }


def timed_out(run: StageRun, limit: int) -> dict[str, Any]:
    return {
        "code": FailureCode.TIMEOUT,
        "message": f"The job's stages have run for max_runtime_seconds, which is {limit}. Stage {run.stage} was stopped.",
        "hint": f"Retry the job with a higher max_runtime_seconds, for example {2 * limit}; what was saved is kept.",
        "param": "max_runtime_seconds",
        "patch": {"max_runtime_seconds": 2 * limit},
        "log": log_path(run),
    }


def fail(session: Session, owner: Job | File, run: StageRun, error: dict[str, Any]) -> None:
    """Ends the job, or the inspection, with the error of its last attempt."""
    if isinstance(owner, File):
        if run.stage is Stage.INSPECT:
            owner.status, owner.status_details = "error", error["message"]
            session.add(owner)
        return
    data = {"stage": run.stage, "attempt": run.attempt, "code": error["code"]}
    jobs.record_event(session, owner, EventType.STAGE_FAILED, f"Stage {run.stage} failed: {error['message']}", data)
    owner.error = error
    jobs.set_status(session, owner, JobStatus.FAILED, error["message"], error)


def heed(session: Session, job: Job) -> bool:
    """Cancels or pauses a job whose user has asked for it, now that no worker has it. False when nothing was asked for."""
    if job.cancel_requested_at:
        jobs.set_status(session, job, JobStatus.CANCELLED, "The job was cancelled, as asked.")
    elif job.pause_requested_at:
        pause(session, job)
    else:
        return False
    return True


def pause(session: Session, job: Job) -> None:
    job.pause_requested_at = None
    data = {"stage": job.stage, "step": (job.progress or {}).get("step")}
    jobs.set_status(session, job, JobStatus.PAUSED, f"The job is paused at stage {job.stage}.", data)


def queue_again(
    session: Session, owner: Job | File, run: StageRun, *, reason: str, message: str, overrides: dict[str, Any] | None = None
) -> None:
    """Queues the next attempt at the stage of `run`, with the overrides of `run` unless others are given."""
    overrides = overrides or run.overrides
    if isinstance(owner, File):
        attempt = stage_runs.next_attempt(session, owner, run.stage)
        stage_runs.enqueue(session, file=owner, stage=run.stage, attempt=attempt, overrides=overrides, key=run.key)
        return
    attempt = run.attempt + 1
    stage_runs.enqueue(session, job=owner, stage=run.stage, attempt=attempt, overrides=overrides)
    data = {"stage": run.stage, "attempt": attempt, "reason": reason, "patch": overrides}
    jobs.record_event(session, owner, EventType.JOB_RETRYING, message, data)


def recover(session: Session, run: StageRun) -> None:
    """Of an attempt that was lost: tries again, unless it was the third in a row that made no new checkpoint."""
    owner = load_owner(session, run)
    error = run.error or {}
    if isinstance(owner, Job) and heed(session, owner):
        return
    since = owner.queued_at if isinstance(owner, Job) else owner.created_at
    if count_deaths(session, run, since) >= MAX_DEATHS:
        message = f"Stage {run.stage} was lost {MAX_DEATHS} times in a row without a new checkpoint. Last: {error['message']}"
        fail(session, owner, run, error | {"message": message})
    else:
        message = f"{error['message']} Trying again from the last checkpoint."
        queue_again(session, owner, run, reason=FailureCode.WORKER_LOST, message=message)


def count_deaths(session: Session, run: StageRun, since: datetime) -> int:
    """How many attempts in a row, up to `run`, were lost without a checkpoint. One that was given back counts for nothing, and
    so does one from before `since`, when the user sent the job on its way again."""
    deaths = 0
    for attempt in [run, *stage_runs.earlier_attempts(session, run)]:
        if attempt.status is StageStatus.CANCELLED:
            continue
        code = (attempt.error or {}).get("code")
        if code != FailureCode.WORKER_LOST or attempt.created_at < since or stage_runs.has_checkpoint(session, attempt):
            break
        deaths += 1
    return deaths
