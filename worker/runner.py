"""Claims stage runs of one resource and sees each through: begin, attend, settle.

While a stage runs, one short transaction a second stores what it reported, extends the lease and reads whether the job is to be
cancelled; none is open in between. The fence is checked first in each: a run that was taken away is killed, and nothing more
is written about it.
"""

import errno
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Engine, update
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlmodel import Session, col

from app.db import read_session, write_session
from app.jobs import recovery, stage_runs
from app.jobs import repository as jobs
from app.jobs.states import EventType, FailureCode, JobStatus, Resource, StageStatus
from app.jobs.tidying import discard_partial, tidy
from app.models import Job, StageRun, Worker
from app.settings import Settings
from app.storage import Storage
from worker.inputs import attempt_folder, build_request, load_secrets
from worker.process import StageProcess
from worker.reports import apply_reports
from worker.settlement import Ending, Remains, settle
from worker.stages import StageFailure

log = logging.getLogger(__name__)

TICK_SECONDS = 1.0
CANCEL_GRACE_SECONDS = 8.0
YIELD_GRACE_SECONDS = 25.0
"""How long a stage may take to save when its worker has to leave."""
HURRIED_GRACE_SECONDS = 2.0

T = TypeVar("T")


@dataclass
class StopRequest:
    """Counted by signal handlers: once is a request, more is a hurry."""

    times: int = 0

    @property
    def grace_seconds(self) -> float:
        return YIELD_GRACE_SECONDS if self.times == 1 else HURRIED_GRACE_SECONDS


@dataclass(frozen=True)
class Runner:
    engine: Engine
    settings: Settings
    storage: Storage
    worker_id: str
    stop: StopRequest = field(default_factory=StopRequest)

    @property
    def tick_seconds(self) -> float:
        return min(TICK_SECONDS, self.settings.lease_seconds / 4)


@dataclass(frozen=True)
class Claim:
    run_id: str
    fence: int
    folder: Path


def work(runner: Runner, resource: Resource) -> None:
    """Runs what waits for `resource`, one after the other, until nothing waits or the worker has to leave."""
    worked = False
    try:
        while not runner.stop.times and (claim := claim_next(runner, resource)):
            worked = True
            carry_out(runner, claim)
    finally:
        if worked:
            with write_session(runner.engine) as session:
                show_work(session, runner, None)


def claim_next(runner: Runner, resource: Resource) -> Claim | None:
    with write_session(runner.engine) as session:
        run = stage_runs.claim(session, resource, runner.worker_id, runner.settings.lease_seconds)
    return Claim(run.id, run.fence, attempt_folder(runner.storage, run)) if run else None


def show_work(session: Session, runner: Runner, run_id: str | None) -> None:
    session.execute(update(Worker).where(col(Worker.id) == runner.worker_id).values(stage_run_id=run_id))


def carry_out(runner: Runner, claim: Claim) -> None:
    order = insist(runner, lambda session: begin(session, runner, claim))
    if order is None:
        return
    request, secrets = order
    try:
        process = StageProcess(claim.folder, request, secrets)
    except OSError as problem:
        log.exception("%s could not start", claim.folder)
        failed = Remains(
            Ending.BY_ITSELF, failure_of("The stage could not start", problem), [], claim.folder / "out", "", False
        )
        put_away(runner, claim, failed)
        return
    try:
        ending, position = attend(runner, claim, process)
    finally:
        process.close()
    log.info("%s %s; its process %s", claim.folder, ending, process.describe_end())
    if ending is not Ending.FENCED:
        put_away(runner, claim, gather(claim, process, ending, position))


def put_away(runner: Runner, claim: Claim, remains: Remains) -> None:
    if (remains.result or {}).get("status") != "succeeded":
        discard_partial(claim.folder)
    settle_remains(runner, claim, remains)
    try:
        with read_session(runner.engine) as session:
            run = session.get_one(StageRun, claim.run_id)
            tidy(session, runner.storage, recovery.load_owner(session, run))
    except (OSError, SQLAlchemyError) as problem:
        log.warning("what %s need not keep is left to the sweep: %s", claim.folder, problem)


def settle_remains(runner: Runner, claim: Claim, remains: Remains) -> None:
    try:
        insist(runner, lambda session: settle(session, runner.storage, claim.run_id, claim.fence, remains))
    except (OSError, ValueError) as problem:
        log.exception("the results of %s could not be published", claim.folder)
        failed = replace(remains, result=failure_of("The stage's results could not be stored", problem))
        insist(runner, lambda session: settle(session, runner.storage, claim.run_id, claim.fence, failed))


def failure_of(what: str, problem: Exception) -> dict[str, Any]:
    """The result that a stage would have written, had it been at fault."""
    full = isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT)
    error = {
        "code": FailureCode.DISK_FULL if full else FailureCode.INTERNAL,
        "message": f"{what}: {problem}",
        "hint": "Check the space and the permissions of the data folder, then retry the job.",
        "param": None,
        "patch": None,
    }
    return {"status": "failed", "error": error}


def insist(runner: Runner, write: Callable[[Session], T]) -> T:
    """One transaction, begun anew while the database does not answer, for as long as the lease lasts."""
    deadline = time.monotonic() + runner.settings.lease_seconds
    while True:
        try:
            with write_session(runner.engine) as session:
                return write(session)
        except OperationalError as problem:
            if time.monotonic() > deadline:
                raise
            log.warning("the database does not answer, trying again: %s", problem)
            time.sleep(runner.tick_seconds)


def begin(session: Session, runner: Runner, claim: Claim) -> tuple[dict[str, Any], dict[str, str]] | None:
    """Writes down that the stage starts; what it is told, and its secrets. None: the run is over before it began."""
    if not stage_runs.extend(session, claim.run_id, claim.fence, runner.settings.lease_seconds):
        return None
    run = session.get_one(StageRun, claim.run_id)
    owner = recovery.load_owner(session, run)
    if isinstance(owner, Job) and owner.cancel_requested_at:
        stage_runs.finish(session, claim.run_id, claim.fence, StageStatus.CANCELLED)
        recovery.cancel(session, owner)
        return None
    if isinstance(owner, Job):
        record_start(session, owner, run)
    show_work(session, runner, run.id)
    try:
        request = build_request(session, runner.settings, runner.storage, run, owner)
        return request, load_secrets(session, runner.settings, run, owner)
    except StageFailure as failure:
        error = vars(failure) | {"log": None}
        stage_runs.finish(session, claim.run_id, claim.fence, StageStatus.FAILED, error=error)
        recovery.fail(session, owner, run, error)
        return None


def record_start(session: Session, job: Job, run: StageRun) -> None:
    if job.status is JobStatus.QUEUED:
        jobs.set_status(session, job, JobStatus.RUNNING, "The job started.")
    job.stage = run.stage
    session.add(job)
    message = f"Stage {run.stage} started" + (f", attempt {run.attempt}." if run.attempt > 1 else ".")
    data = {"stage": run.stage, "attempt": run.attempt, "worker": run.worker_id}
    jobs.record_event(session, job, EventType.STAGE_STARTED, message, data)


def attend(runner: Runner, claim: Claim, process: StageProcess) -> tuple[Ending, int]:
    """Stays with the process until it has ended or has to. Returns how far its reports have been stored."""
    position, ending, deadline = 0, Ending.BY_ITSELF, float("inf")
    confirmed = time.monotonic()
    while True:
        if process.wait(runner.tick_seconds):
            return ending, position
        reports, end = process.read_reports(position)
        try:
            with write_session(runner.engine) as session:
                held, cancelled = keep(session, runner, claim, reports)
            position, confirmed = end, time.monotonic()
        except OperationalError as problem:
            log.warning("the database does not answer: %s", problem)
            held, cancelled = time.monotonic() < confirmed + runner.settings.lease_seconds, False
        if not held:
            return Ending.FENCED, position
        if ending is Ending.BY_ITSELF and (cancelled or runner.stop.times):
            ending = Ending.CANCELLED if cancelled else Ending.YIELDED
            deadline = time.monotonic() + (CANCEL_GRACE_SECONDS if cancelled else runner.stop.grace_seconds)
            process.ask_to_stop()
        if runner.stop.times > 1:
            deadline = min(deadline, time.monotonic() + HURRIED_GRACE_SECONDS)
        if time.monotonic() > deadline:
            return ending, position


def keep(session: Session, runner: Runner, claim: Claim, reports: list[dict[str, Any]]) -> tuple[bool, bool]:
    """Extends the lease and stores `reports`. Whether the run is still ours, and whether its job is to be cancelled."""
    if not stage_runs.extend(session, claim.run_id, claim.fence, runner.settings.lease_seconds):
        return False, False
    run = session.get_one(StageRun, claim.run_id)
    if run.job_id is None:
        return True, False
    job = session.get_one(Job, run.job_id)
    if reports:
        apply_reports(session, job, run, reports)
    return True, job.cancel_requested_at is not None


def gather(claim: Claim, process: StageProcess, ending: Ending, position: int) -> Remains:
    return Remains(
        ending=ending,
        result=process.read_result(),
        reports=process.read_reports(position)[0],
        out=claim.folder / "out",
        end=process.describe_end(),
        killed_for_memory=process.was_killed_for_memory(),
    )
