"""Rounds of the reaper: who may make them, what they take back, for whom they ring."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
import redis
from sqlalchemy import Engine
from sqlmodel import select

from app.broker import Broker
from app.db import read_session, write_session
from app.jobs import stage_runs
from app.jobs.spec import SPEC_VERSION
from app.jobs.states import JobStatus, Resource, Stage, StageStatus
from app.models import Event, Job, Leader, StageRun, Worker, now
from app.reaper import make_round
from app.settings import Settings


@pytest.fixture
def broker(settings: Settings) -> Iterator[redis.Redis]:
    server = Broker(settings.broker_socket, settings.root / "broker", settings.root / "broker.log")
    server.start()
    yield redis.Redis(unix_socket_path=str(settings.broker_socket))
    server.stop()


def add_running_job(engine: Engine, *, lease: float, attempt: int = 1) -> tuple[str, str]:
    with write_session(engine) as session:
        job = Job(base_model="m", spec={}, spec_version=SPEC_VERSION, status=JobStatus.RUNNING)
        session.add(job)
        session.flush()
        stage_runs.enqueue(session, job=job, stage=Stage.TRAIN, attempt=attempt)
        run = stage_runs.claim(session, Resource.GPU, "wrk_dead", lease)
        session.info.clear()
    assert run
    return job.id, run.id


def add_worker(engine: Engine, queue: str, *, silent_seconds: float = 0, stage_run_id: str | None = None) -> str:
    with write_session(engine) as session:
        beat = now() - timedelta(seconds=silent_seconds)
        worker = Worker(host="h", pid=1, queues=[queue], heartbeat_at=beat, stage_run_id=stage_run_id)
        session.add(worker)
    return worker.id


def test_an_expired_lease_is_taken_back_once_and_its_stage_queued_again(
    engine: Engine, settings: Settings, broker: redis.Redis
) -> None:
    job_id, run_id = add_running_job(engine, lease=-1)
    kept, _ = add_running_job(engine, lease=60)
    for _ in range(3):
        make_round(engine, settings, "one")
    with read_session(engine) as session:
        first, second = stage_runs.attempts(session, job_id)
        assert (first.id, first.status, first.fence) == (run_id, StageStatus.FAILED, 2)
        assert (second.attempt, second.status) == (2, StageStatus.QUEUED)
        assert [event.type.value for event in session.exec(select(Event))] == ["job.retrying"]
        assert [run.status for run in stage_runs.attempts(session, kept)] == [StageStatus.RUNNING]
    assert broker.llen("gpu") == 1


def test_the_third_loss_in_a_row_ends_the_job(engine: Engine, settings: Settings, broker: redis.Redis) -> None:
    job_id, _ = add_running_job(engine, lease=-1)
    for _ in range(2):
        make_round(engine, settings, "one")
        with write_session(engine) as session:
            assert stage_runs.claim(session, Resource.GPU, "wrk_next", -1)
    make_round(engine, settings, "one")
    with read_session(engine) as session:
        job = session.get_one(Job, job_id)
        assert job.status is JobStatus.FAILED and job.error and job.error["code"] == "worker_lost"
        assert len(stage_runs.attempts(session, job_id)) == 3


def test_a_lost_job_that_was_to_be_cancelled_is(engine: Engine, settings: Settings, broker: redis.Redis) -> None:
    job_id, _ = add_running_job(engine, lease=-1)
    with write_session(engine) as session:
        session.get_one(Job, job_id).cancel_requested_at = now()
    make_round(engine, settings, "one")
    with read_session(engine) as session:
        assert session.get_one(Job, job_id).status is JobStatus.CANCELLED
        assert stage_runs.waiting(session) == {}


def test_one_leads_until_it_falls_silent(engine: Engine, settings: Settings, broker: redis.Redis) -> None:
    make_round(engine, settings, "one")
    job_id, _ = add_running_job(engine, lease=-1)
    make_round(engine, settings, "two")
    with read_session(engine) as session:
        assert session.get_one(Leader, "reaper").owner == "one"
        assert len(stage_runs.attempts(session, job_id)) == 1
    with write_session(engine) as session:
        session.get_one(Leader, "reaper").lease_until = now() - timedelta(seconds=1)
    make_round(engine, settings, "two")
    make_round(engine, settings, "one")
    with read_session(engine) as session:
        assert session.get_one(Leader, "reaper").owner == "two"
        assert len(stage_runs.attempts(session, job_id)) == 2


@pytest.mark.parametrize(
    ("worker", "rings"),
    [
        ({"queue": "gpu"}, 1),
        ({"queue": "cpu"}, 0),
        ({"queue": "gpu", "stage_run_id": "run_long"}, 0),
        ({"queue": "gpu", "silent_seconds": 90}, 0),
    ],
)
def test_it_rings_for_what_waits_where_a_live_worker_is_idle(
    engine: Engine, settings: Settings, broker: redis.Redis, worker: dict, rings: int
) -> None:
    add_worker(engine, **worker)
    make_round(engine, settings, "one")
    assert broker.llen("gpu") == 0
    with write_session(engine) as session:
        job = Job(base_model="m", spec={}, spec_version=SPEC_VERSION)
        session.add(job)
        session.flush()
        session.add(StageRun(job_id=job.id, stage=Stage.TRAIN, resource=Resource.GPU))
    make_round(engine, settings, "one")
    assert (broker.llen("gpu"), broker.llen("cpu")) == (rings, 0)


def test_workers_long_dead_are_forgotten(engine: Engine, settings: Settings) -> None:
    add_worker(engine, "gpu", silent_seconds=3600)
    alive = add_worker(engine, "gpu", silent_seconds=30)
    make_round(engine, settings, "one")
    with read_session(engine) as session:
        assert [worker.id for worker in session.exec(select(Worker))] == [alive]
