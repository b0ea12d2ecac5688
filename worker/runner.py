"""Claims stage runs of one resource and sees each through: begin, attend, settle.

While a stage runs, one short transaction a second stores what it reported, extends the lease and reads whether the job is to be
cancelled; none is open in between. The fence is checked first in each: a run that was taken away is killed, and nothing more
is written about it.
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Engine, update
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlmodel import Session, col

from app.db import read_session, write_session
from app.disk import is_full
from app.jobs import recovery, stage_runs
from app.jobs import repository as jobs
from app.jobs.states import EventType, FailureCode, JobStatus, Resource, StageStatus
from app.jobs.tidying import tidy
from app.models import File, Job, StageRun, Worker
from app.settings import Settings
from app.storage import Storage, discard_partial
from worker.inputs import attempt_folder, build_request, load_secrets
from worker.leftovers import end_earlier
from worker.process import StageProcess
from worker.reports import apply_reports, catch_up, note_progress, read_reports
from worker.settlement import Ending, Remains, settle
from worker.stages import StageFailure

log = logging.getLogger(__name__)

TICK_SECONDS = 1.0
GRACE_SECONDS = {Ending.CANCELLED: 8.0, Ending.PAUSED: 300.0, Ending.TIMED_OUT: 60.0, Ending.YIELDED: 25.0}
"""How long a stage may take to finish its step and save, by why it has to stop."""
HURRIED_GRACE_SECONDS = 2.0

T = TypeVar("T")


@dataclass
class StopRequest:
    """Counted by signal handlers: once is a request, more is a hurry."""

    times: int = 0


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
    request_id: str | None = None


@dataclass(frozen=True)
class Start:
    """What the stage is told, and how long it may take."""

    request: dict[str, Any]
    secrets: dict[str, str] = field(repr=False)
    seconds: float


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
    return Claim(run.id, run.fence, attempt_folder(runner.storage, run), run.request_id) if run else None


def show_work(session: Session, runner: Runner, run_id: str | None) -> None:
    session.execute(update(Worker).where(col(Worker.id) == runner.worker_id).values(stage_run_id=run_id))


def carry_out(runner: Runner, claim: Claim) -> None:
    end_earlier(claim.folder)
    start = insist(runner, lambda session: begin(session, runner, claim))
    if start is None:
        return
    try:
        process = StageProcess(claim.folder, start.request, start.secrets)
    except OSError as problem:
        log.exception("%s: %s could not start", claim.request_id, claim.folder)
        failed = Remains(
            Ending.BY_ITSELF,
            failure_of("The stage could not start", problem, claim.folder),
            [],
            claim.folder / "out",
            "",
            False,
        )
        put_away(runner, claim, failed)
        return
    try:
        ending, position = attend(runner, claim, process, time.monotonic() + start.seconds)
    finally:
        process.close()
    log.info("%s: %s %s; its process %s", claim.request_id, claim.folder, ending, process.describe_end())
    if ending is not Ending.FENCED:
        put_away(runner, claim, gather(claim, process, ending, position))


def put_away(runner: Runner, claim: Claim, remains: Remains) -> None:
    if "files" not in (remains.result or {}):
        with suppress(OSError):  # the sweep tries again
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
        log.exception("%s: the results of %s could not be published", claim.request_id, claim.folder)
        failed = replace(remains, result=failure_of("The stage's results could not be stored", problem, claim.folder))
        insist(runner, lambda session: settle(session, runner.storage, claim.run_id, claim.fence, failed))


def failure_of(what: str, problem: Exception, place: Path) -> dict[str, Any]:
    """The result that a stage would have written, had it been at fault."""
    error = {
        "code": FailureCode.DISK_FULL if is_full(problem, place) else FailureCode.INTERNAL,
        "message": f"{what}: {problem}",
        "hint": "Check the space and the permissions of the data folder, then retry the job.",
        "param": None,
        "patch": None,
    }
    return {"status": "failed", "error": error}


def insist(runner: Runner, write: Callable[[Session], T]) -> T:
    """One transaction, begun anew while the database does not answer, for as long as the lease lasts.

    On a full disk for longer: nobody else can write either, and take the run back.
    """
    deadline = time.monotonic() + runner.settings.lease_seconds
    while True:
        try:
            with write_session(runner.engine) as session:
                return write(session)
        except OperationalError as problem:
            if time.monotonic() > deadline and not (is_full(problem, runner.storage.root) and not runner.stop.times):
                raise
            log.warning("the database does not answer, trying again: %s", problem)
            time.sleep(runner.tick_seconds)


def begin(session: Session, runner: Runner, claim: Claim) -> Start | None:
    """Writes down that the stage starts. None: the run is over before it began."""
    if not stage_runs.extend(session, claim.run_id, claim.fence, runner.settings.lease_seconds):
        return None
    run = session.get_one(StageRun, claim.run_id)
    owner = recovery.load_owner(session, run)
    if isinstance(owner, Job) and (owner.cancel_requested_at or owner.pause_requested_at):
        stage_runs.finish(session, claim.run_id, claim.fence, StageStatus.CANCELLED)
        recovery.heed(session, owner)
        return None
    if isinstance(owner, Job):
        record_start(session, owner, run)
        earlier = stage_runs.earlier_attempts(session, run)
        catch_up(session, owner, run, (attempt_folder(runner.storage, attempt) for attempt in earlier))
    show_work(session, runner, run.id)
    try:
        seconds = seconds_left(session, owner, run)
        request = build_request(session, runner.settings, runner.storage, run, owner)
        return Start(request, load_secrets(session, runner.settings, run, owner), seconds)
    except StageFailure as failure:
        error = vars(failure) | {"log": None}
        stage_runs.finish(session, claim.run_id, claim.fence, StageStatus.FAILED, error=error)
        recovery.fail(session, owner, run, error)
        return None


def seconds_left(session: Session, owner: Job | File, run: StageRun) -> float:
    """Of the job's time. StageFailure timeout when it is over."""
    limit = owner.spec["max_runtime_seconds"] if isinstance(owner, Job) else None
    if limit is None:
        return float("inf")
    seconds = limit - stage_runs.busy_seconds(session, run.job_id or "")
    if seconds <= 0:
        error = recovery.timed_out(run, limit)
        raise StageFailure(FailureCode.TIMEOUT, error["message"], **{key: error[key] for key in ("hint", "param", "patch")})
    return seconds


def record_start(session: Session, job: Job, run: StageRun) -> None:
    if job.status is JobStatus.QUEUED:
        jobs.set_status(session, job, JobStatus.RUNNING, "A worker has the job.")
    job.stage = run.stage
    session.add(job)
    message = f"Stage {run.stage} started" + (f", attempt {run.attempt}." if run.attempt > 1 else ".")
    data = {"stage": run.stage, "attempt": run.attempt, "worker": run.worker_id}
    jobs.record_event(session, job, EventType.STAGE_STARTED, message, data)


def attend(runner: Runner, claim: Claim, process: StageProcess, time_is_over: float) -> tuple[Ending, int]:
    """Stays with the process until it has ended or has to. Returns how far its reports have been stored."""
    position, ending, deadline = 0, Ending.BY_ITSELF, float("inf")
    confirmed = time.monotonic()
    while True:
        if process.wait(runner.tick_seconds):
            return ending, position
        reports, end = read_reports(claim.folder, position)
        wish = None
        try:
            with write_session(runner.engine) as session:
                held, wish = keep(session, runner, claim, reports)
            position, confirmed = end, time.monotonic()
        except OperationalError as problem:
            log.warning("the database does not answer: %s", problem)
            full = is_full(problem, runner.storage.root)
            held = full or time.monotonic() < confirmed + runner.settings.lease_seconds
        if not held:
            return Ending.FENCED, position
        if runner.stop.times:
            wish = wish or Ending.YIELDED
        elif time.monotonic() > time_is_over:
            wish = wish or Ending.TIMED_OUT
        if wish and (ending is Ending.BY_ITSELF or (ending is Ending.PAUSED and wish is not Ending.PAUSED)):
            ending, deadline = wish, time.monotonic() + GRACE_SECONDS[wish]
            process.ask_to_stop()
        if runner.stop.times > 1:
            deadline = min(deadline, time.monotonic() + HURRIED_GRACE_SECONDS)
        if time.monotonic() > deadline:
            return ending, position


def keep(session: Session, runner: Runner, claim: Claim, reports: list[dict[str, Any]]) -> tuple[bool, Ending | None]:
    """Extends the lease and stores `reports`. Whether the run is still ours, and how its user wants it to end."""
    if not stage_runs.extend(session, claim.run_id, claim.fence, runner.settings.lease_seconds):
        return False, None
    run = session.get_one(StageRun, claim.run_id)
    if run.job_id is None:
        note_progress(session, run, reports)
        return True, None
    job = session.get_one(Job, run.job_id)
    if reports:
        apply_reports(session, job, run, reports)
    if job.cancel_requested_at:
        return True, Ending.CANCELLED
    return True, Ending.PAUSED if job.pause_requested_at else None


def gather(claim: Claim, process: StageProcess, ending: Ending, position: int) -> Remains:
    return Remains(
        ending=ending,
        result=process.read_result(),
        reports=read_reports(claim.folder, position)[0],
        out=claim.folder / "out",
        end=process.describe_end(),
        killed_for_memory=process.was_killed_for_memory(),
        disk_was_full=process.found_disk_full(),
    )
