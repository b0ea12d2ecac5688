"""A job driven through random commands, endings and crashes, beside a model of what must come of each.

Workers act by the product's own functions, one transaction at a time; only the stage process is left out, so that a rule takes
milliseconds. A worker that is frozen keeps its claim and wakes up later; time passes by putting leases into the past.
"""

import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import update
from sqlmodel import Session, col, select

from app.db import make_engine, read_session, write_session
from app.errors import Conflict
from app.jobs import recovery, service, stage_runs
from app.jobs import repository as jobs
from app.jobs.ladder import next_rung
from app.jobs.spec import JobSpec
from app.jobs.states import TRANSITIONS, EventType, FailureCode, JobStatus, Resource, StageStatus
from app.migration import migrate
from app.models import Blob, Event, File, Job, StageRun, now
from app.reaper import make_round
from app.settings import Settings
from app.storage import Storage
from app.tenancy import DEFAULT_TENANT
from worker.runner import Claim, Runner, begin, claim_next, keep
from worker.settlement import Ending, Remains, settle

STATUS_OF = {event: status for following in TRANSITIONS.values() for status, event in following.items()}
LIVE = (StageStatus.QUEUED, StageStatus.RUNNING)
ENDINGS = ("succeeded", "failed", "out_of_memory", "killed")


class Lifecycle(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.settings = Settings(data_dir=Path(self.folder.name), broker_url="memory://", lease_seconds=3600)
        self.engine = make_engine(self.settings.database)
        migrate(self.engine)
        self.runner = Runner(self.engine, self.settings, Storage(self.settings.root), "wrk_model")
        self.claim: Claim | None = None
        self.zombies: list[Claim] = []
        self.deaths = 0
        with write_session(self.engine, DEFAULT_TENANT) as session:
            session.add(Blob(sha256="0" * 64, bytes=1))
            session.flush()
            file = File(filename="rows.jsonl", purpose="fine-tune", blob_sha256="0" * 64)
            session.add(file)
            session.flush()
            spec = JobSpec.model_validate({"base_model": "smollm2-135m-instruct", "dataset": {"file": file.id}})
            self.job_id = service.create(session, self.settings, spec).id
        self.expected = JobStatus.QUEUED
        self.wants_cancel = self.wants_pause = False

    def teardown(self) -> None:
        self.engine.dispose()
        self.folder.cleanup()

    def job(self) -> Job:
        with read_session(self.engine) as session:
            return jobs.get(session, self.job_id)

    def runs(self) -> list[StageRun]:
        with read_session(self.engine) as session:
            return stage_runs.attempts(session, self.job_id)

    def live(self) -> list[StageRun]:
        return [run for run in self.runs() if run.status in LIVE]

    def attempt(self, action: Callable[[Session], Any], *, allowed: bool) -> None:
        """A command of the user: done when it is allowed, a conflict that changes nothing when it is not."""
        try:
            with write_session(self.engine) as session:
                action(session)
        except Conflict:
            assert not allowed
        else:
            assert allowed

    def heeded(self) -> bool:
        """What the model says when no worker has the job any more and its user has asked for something."""
        if self.wants_cancel:
            self.expected, self.wants_pause = JobStatus.CANCELLED, False
        elif self.wants_pause:
            self.expected, self.wants_pause = JobStatus.PAUSED, False
        return self.wants_cancel or self.expected is JobStatus.PAUSED

    @initialize(stages=st.integers(0, 3))
    def some_stages_are_done(self, stages: int) -> None:
        for _ in range(stages):
            self.claim_it()
            self.begin_it()
            self.end_it("succeeded")

    @rule()
    def cancel(self) -> None:
        allowed = not self.expected.is_terminal
        self.attempt(lambda session: service.cancel(session, self.job_id), allowed=allowed)
        if allowed:
            self.wants_cancel = True
            if self.is_waiting() or self.expected is JobStatus.PAUSED:
                self.heeded()

    @rule()
    def pause(self) -> None:
        allowed = not self.expected.is_terminal and not self.wants_cancel
        waiting = self.is_waiting()
        self.attempt(lambda session: service.pause(session, self.job_id), allowed=allowed)
        if allowed and self.expected is not JobStatus.PAUSED:
            self.wants_pause = True
            if waiting:
                self.heeded()

    @rule()
    def resume(self) -> None:
        allowed = self.expected is JobStatus.PAUSED or self.wants_pause
        self.attempt(lambda session: service.resume(session, self.job_id), allowed=allowed)
        if self.expected is JobStatus.PAUSED:
            self.expected, self.deaths = JobStatus.QUEUED, 0
        self.wants_pause = False

    @rule(learning_rate=st.sampled_from([None, 1e-5]))
    def retry(self, learning_rate: float | None) -> None:
        overrides = {"training": {"learning_rate": learning_rate}} if learning_rate else {}
        allowed = self.expected in (JobStatus.FAILED, JobStatus.CANCELLED)

        def act(session: Session) -> None:
            with read_session(self.engine, DEFAULT_TENANT) as looking:
                spec = service.plan_retry(looking, self.settings, self.job_id, overrides)
            service.retry(session, self.job_id, spec, overrides)

        self.attempt(act, allowed=allowed)
        if allowed:
            self.expected, self.deaths = JobStatus.QUEUED, 0
            self.wants_cancel = self.wants_pause = False

    def is_waiting(self) -> bool:
        return self.claim is None and not self.expected.is_terminal and self.expected is not JobStatus.PAUSED

    @precondition(lambda self: self.is_waiting())
    @rule()
    def claim_it(self) -> None:
        self.claim = claim_next(self.runner, Resource.CPU) or claim_next(self.runner, Resource.GPU)
        while self.claim and self.run_of(self.claim).job_id is None:  # the inspection of the file
            self.claim = claim_next(self.runner, Resource.CPU)
        assert self.claim, "what waits can be claimed"

    def run_of(self, claim: Claim) -> StageRun:
        with read_session(self.engine) as session:
            return session.get_one(StageRun, claim.run_id)

    @precondition(lambda self: self.claim is not None)
    @rule()
    def begin_it(self) -> None:
        assert self.claim
        with write_session(self.engine) as session:
            start = begin(session, self.runner, self.claim)
        if self.heeded():
            assert start is None
            self.claim = None
        else:
            assert start is not None
            self.expected = JobStatus.RUNNING

    @precondition(lambda self: self.claim is not None)
    @rule(checkpoint=st.booleans())
    def report(self, checkpoint: bool) -> None:
        assert self.claim
        step = len(self.events()) + 1
        reports = [{"kind": "checkpoint", "step": step, "bytes": 1, "metrics": {}}] if checkpoint else []
        with write_session(self.engine) as session:
            held, wish = keep(session, self.runner, self.claim, reports)
        wanted = Ending.CANCELLED if self.wants_cancel else Ending.PAUSED if self.wants_pause else None
        assert (held, wish) == (True, wanted)
        self.deaths = 0 if checkpoint else self.deaths

    @precondition(lambda self: self.claim is not None and self.expected is JobStatus.RUNNING)
    @rule(how=st.sampled_from([*ENDINGS, "stopped"]))
    def end_it(self, how: str) -> None:
        assert self.claim
        run, training = self.run_of(self.claim), self.job().spec["training"]
        self.settle(self.claim, how)
        self.claim = None
        last = run.stage == "verify"
        if how == "succeeded":
            self.deaths = 0
            if last and not self.wants_cancel:
                self.expected, self.wants_pause = JobStatus.SUCCEEDED, False
            else:
                self.heeded()
        elif how == "stopped":
            self.heeded()
        elif how == "killed":
            self.die()
        elif how == "out_of_memory" and run.stage == "train" and next_rung(training):
            self.heeded()
        else:
            self.expected = JobStatus.FAILED
            self.wants_pause = False

    def die(self) -> None:
        self.deaths += 1
        if not self.heeded() and self.deaths == recovery.MAX_DEATHS:
            self.expected = JobStatus.FAILED

    def settle(self, claim: Claim, how: str) -> None:
        error = {
            "code": how if how == "out_of_memory" else "internal",
            "message": how,
            "hint": "",
            "param": None,
            "patch": None,
        }
        result: dict[str, Any] | None = {
            "succeeded": {"status": "succeeded", "values": {"verification": {}}, "files": []},
            "stopped": {"status": "stopped"},
        }.get(how, {"status": "failed", "error": error})
        ending = Ending.YIELDED if how == "stopped" else Ending.BY_ITSELF
        if how == "killed":
            result = None
        remains = Remains(ending, result, [], claim.folder / "out", "was killed by SIGKILL", False)
        with write_session(self.engine) as session:
            settle(session, self.runner.storage, claim.run_id, claim.fence, remains)

    @precondition(lambda self: self.claim is not None)
    @rule()
    def worker_freezes_and_the_reaper_takes_the_run_back(self) -> None:
        assert self.claim
        self.zombies.append(self.claim)
        self.claim = None
        with write_session(self.engine) as session:
            late = now() - timedelta(seconds=1)
            session.execute(update(StageRun).where(col(StageRun.status) == StageStatus.RUNNING).values(lease_until=late))
        make_round(self.engine, self.settings, "model")
        self.die()

    @rule()
    def the_reaper_looks(self) -> None:
        make_round(self.engine, self.settings, "model")

    @precondition(lambda self: self.zombies)
    @rule(how=st.sampled_from([*ENDINGS, "stopped", "begins"]))
    def a_frozen_worker_wakes_up_and_changes_nothing(self, how: str) -> None:
        zombie, before = self.zombies[-1], self.picture()
        if how == "begins":
            with write_session(self.engine) as session:
                assert begin(session, self.runner, zombie) is None
                assert keep(session, self.runner, zombie, [{"kind": "progress", "step": 9}]) == (False, None)
        else:
            self.settle(zombie, how)
        assert self.picture() == before

    def picture(self) -> tuple[Any, ...]:
        return self.job().model_dump(), [run.model_dump() for run in self.runs()], len(self.events())

    def events(self) -> list[Event]:
        with read_session(self.engine) as session:
            return list(session.exec(select(Event).where(Event.job_id == self.job_id).order_by(col(Event.number))))

    @invariant()
    def the_job_is_where_the_model_says(self) -> None:
        job = self.job()
        assert job.status is self.expected
        assert bool(job.finished_at) == job.status.is_terminal
        assert bool(job.pause_requested_at) == self.wants_pause and bool(job.cancel_requested_at) == self.wants_cancel

    @invariant()
    def exactly_one_run_is_alive_while_the_job_is(self) -> None:
        alive = 0 if self.expected.is_terminal or self.expected is JobStatus.PAUSED else 1
        assert len(self.live()) == alive
        assert [run.status for run in self.live()] == [StageStatus.RUNNING if self.claim else StageStatus.QUEUED] * alive

    @invariant()
    def the_events_tell_the_whole_story(self) -> None:
        events = self.events()
        assert [event.number for event in events] == list(range(1, len(events) + 1))
        status = JobStatus.QUEUED
        for event in events:
            if event.type in STATUS_OF and not (event.type is EventType.JOB_RETRYING and not status.is_terminal):
                assert TRANSITIONS[status].get(STATUS_OF[event.type]) is event.type
                status = STATUS_OF[event.type]
        assert status is self.expected

    @invariant()
    def attempts_are_never_reused(self) -> None:
        seen = [(run.stage, run.attempt) for run in self.runs()]
        assert len(seen) == len(set(seen))
        assert all(run.error is None or run.error["code"] in list(FailureCode) for run in self.runs())


TestLifecycle = pytest.mark.usefixtures("no_broker")(Lifecycle.TestCase)
TestLifecycle.settings = settings(
    max_examples=30, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],  # shrinking takes minutes, and the steps of a failure are printed anyway
)  # fmt: skip
