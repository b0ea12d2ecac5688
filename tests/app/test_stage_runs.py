"""Claims, leases and fences, on the real engine with real concurrent sessions."""

import threading
from datetime import timedelta

from sqlalchemy import Engine

from app.db import read_session, write_session
from app.jobs import stage_runs
from app.jobs.spec import SPEC_VERSION
from app.jobs.states import Resource, Stage, StageStatus
from app.models import Job, StageRun, now

LOST = {"code": "worker_lost", "message": "lost"}


def add_job(engine: Engine, *stages: Stage, priority: int = 0, age: float = 0) -> tuple[Job, list[StageRun]]:
    with write_session(engine) as session:
        created = now() - timedelta(seconds=age)
        job = Job(base_model="m", priority=priority, spec={}, spec_version=SPEC_VERSION, created_at=created)
        session.add(job)
        session.flush()
        runs = [stage_runs.enqueue(session, job=job, stage=stage) for stage in stages]
        session.info.clear()
    return job, runs


def claim(engine: Engine, resource: Resource = Resource.CPU, worker: str = "wrk_a", lease: float = 60) -> StageRun | None:
    with write_session(engine) as session:
        return stage_runs.claim(session, resource, worker, lease)


def test_of_racing_workers_exactly_one_gets_each_run(engine: Engine) -> None:
    for _ in range(12):
        add_job(engine, Stage.PREPARE)
    got: list[tuple[str, str]] = []
    barrier = threading.Barrier(6)

    def work(worker: str) -> None:
        barrier.wait()
        while run := claim(engine, worker=worker):
            got.append((run.id, run.worker_id or ""))

    threads = [threading.Thread(target=work, args=[f"wrk_{number}"]) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 12
    assert len({run for run, _ in got}) == 12


def test_priority_comes_before_age_and_age_is_the_jobs(engine: Engine) -> None:
    young, [young_run] = add_job(engine, Stage.PREPARE)
    old, [old_run] = add_job(engine, Stage.PREPARE, age=60)
    urgent, [urgent_run] = add_job(engine, Stage.PREPARE, priority=5)
    add_job(engine, Stage.TRAIN, priority=9)
    with read_session(engine) as session:
        together = stage_runs.newest_by_stage(session, [young.id, old.id, urgent.id])
        for job, place in ((young, 3), (old, 2), (urgent, 1)):
            assert [run.place for run in together[job.id]] == [place]
            assert [run.place for run in stage_runs.newest_by_stage(session, [job.id])[job.id]] == [place]
        assert stage_runs.waiting(session) == {Resource.CPU: 3, Resource.GPU: 1}
    claims = [claim(engine) for _ in range(3)]
    assert [run.id for run in claims if run] == [urgent_run.id, old_run.id, young_run.id]
    assert claim(engine) is None
    with read_session(engine) as session:
        together = stage_runs.newest_by_stage(session, [young.id, old.id, urgent.id])
        assert [run.place for [run] in together.values()] == [None] * 3
        assert stage_runs.newest_by_stage(session, [young.id])[young.id][0].place is None


def test_a_run_that_was_taken_back_hears_no_more_from_its_worker(engine: Engine) -> None:
    add_job(engine, Stage.TRAIN)
    run = claim(engine, Resource.GPU, lease=-1)
    assert run and run.fence == 1 and run.status is StageStatus.RUNNING
    with write_session(engine) as session:
        [late] = stage_runs.expired(session)
        assert stage_runs.take_back(session, late, LOST)
        assert (late.status, late.fence, late.lease_until) == (StageStatus.FAILED, 2, None)
        assert not stage_runs.take_back(session, late, LOST)
    with write_session(engine) as session:
        assert not stage_runs.extend(session, run.id, run.fence, 60)
        assert not stage_runs.finish(session, run.id, run.fence, StageStatus.SUCCEEDED, outputs={"values": {}})
    with read_session(engine) as session:
        stored = stage_runs.find(session, run.id)
        assert stored and (stored.status, stored.outputs, stored.error) == (StageStatus.FAILED, None, LOST)


def test_a_heartbeat_keeps_a_run(engine: Engine) -> None:
    add_job(engine, Stage.TRAIN)
    run = claim(engine, Resource.GPU, lease=-1)
    assert run
    with write_session(engine) as session:
        assert stage_runs.extend(session, run.id, run.fence, 60)
        assert stage_runs.expired(session) == []
        assert not stage_runs.extend(session, run.id, run.fence + 1, 60)
        assert not stage_runs.finish(session, run.id, run.fence - 1, StageStatus.SUCCEEDED)
        assert not stage_runs.take_back(session, run, LOST)
        assert stage_runs.finish(session, run.id, run.fence, StageStatus.SUCCEEDED, outputs={"values": {"rows": 3}})
        assert not stage_runs.extend(session, run.id, run.fence, 60)


def test_cancelling_reaches_only_runs_that_wait(engine: Engine) -> None:
    waiting, _ = add_job(engine, Stage.PREPARE, age=9)
    with write_session(engine) as session:
        assert stage_runs.cancel_waiting(session, waiting)
    assert claim(engine) is None
    running, _ = add_job(engine, Stage.PREPARE)
    assert claim(engine)
    with write_session(engine) as session:
        assert not stage_runs.cancel_waiting(session, running)


def test_the_newest_attempt_of_each_stage_in_the_order_of_stages(engine: Engine) -> None:
    job, _ = add_job(engine, Stage.TRAIN, Stage.PREPARE)
    with write_session(engine) as session:
        stage_runs.enqueue(session, job=job, stage=Stage.TRAIN, attempt=2)
        session.info.clear()
    with read_session(engine) as session:
        newest = stage_runs.newest_by_stage(session, [job.id])[job.id]
        assert [(run.stage, run.attempt) for run in newest] == [(Stage.PREPARE, 1), (Stage.TRAIN, 2)]
        assert [run.attempt for run in stage_runs.attempts(session, job.id)] == [1, 1, 2]
        assert [run.attempt for run in stage_runs.earlier_attempts(session, newest[1])] == [1]
