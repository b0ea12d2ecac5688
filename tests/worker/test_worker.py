"""Real workers on a real broker: doorbells, deaths, freezes, departures."""

import os
import re
import signal
from pathlib import Path

import pytest
import redis
from sqlalchemy.exc import IntegrityError
from sqlmodel import select
from supervising import PATIENCE_SECONDS, StartWorker, Supervised, is_gone, wait_until

from app.db import write_session
from app.jobs import repository as jobs
from app.jobs.metrics import join_chunks
from app.jobs.states import JobStatus, Resource, StageStatus
from app.models import File, Worker
from app.queue import ring
from app.reaper import Reaper


def list_workers(supervised: Supervised) -> list[Worker]:
    with supervised.session() as session:
        return list(session.exec(select(Worker)))


def test_the_bell_rings_after_the_commit_and_not_after_a_rollback(supervised: Supervised, broker: redis.Redis) -> None:
    with write_session(supervised.engine) as session:
        ring(session, "cpu")
        ring(session, "cpu")
        assert broker.llen("cpu") == 0
    assert broker.llen("cpu") == 1
    with write_session(supervised.engine) as session:
        session.add(File(filename="f", purpose="fine-tune", blob_sha256="no such blob"))
        ring(session, "gpu")
        with pytest.raises(IntegrityError):
            session.flush()
        session.rollback()
        ring(session, "notify")
    assert (broker.llen("gpu"), broker.llen("notify")) == (0, 1)


def test_a_ring_wakes_a_worker_and_a_worker_finds_what_waited_for_it(
    supervised: Supervised, start_worker: StartWorker, tmp_path: Path
) -> None:
    supervised.script("values['pid'] = os.getppid()")
    first = supervised.submit(request_id="from-the-client:1")
    broker_knows_nothing = redis.Redis(unix_socket_path=str(supervised.settings.broker_socket))
    broker_knows_nothing.flushall()
    worker = start_worker("cpu,gpu")
    wait_until(lambda: supervised.job(first).status is JobStatus.SUCCEEDED)
    second = supervised.submit()
    wait_until(lambda: supervised.job(second).status is JobStatus.SUCCEEDED)
    assert supervised.runs(second)[1].outputs == {"values": {"pid": worker.pid}, "files": []}
    [row] = list_workers(supervised)
    assert (row.pid, row.queues) == (worker.pid, ["cpu", "gpu"])
    assert wait_until(lambda: list_workers(supervised)[0].device)["total_bytes"] > 0
    assert row.versions["tunesmith"]
    log = (tmp_path / "worker-0.log").read_text()
    for stage in ("prepare", "train"):
        assert re.search(rf" INFO worker\.\S+: from-the-client:1: \S+/{first}/{stage}/1 ", log), log
    assert " INFO celery" not in log


def test_a_killed_worker_takes_its_stage_along_and_another_finishes_the_job(
    supervised: Supervised, start_worker: StartWorker, reaper: Reaper
) -> None:
    supervised.script("""
        if stage == "prepare" and attempt == 1:
            report("progress", pid=os.getpid())
            time.sleep(600)
    """)
    job_id = supervised.submit()
    worker = start_worker("cpu")
    pid = wait_until(lambda: supervised.job(job_id).progress)["pid"]
    worker.kill()
    wait_until(lambda: is_gone(pid))
    start_worker("cpu")
    start_worker("gpu")
    wait_until(lambda: supervised.job(job_id).status is JobStatus.SUCCEEDED)
    first, second, _ = supervised.runs(job_id)
    assert (first.status, first.fence, second.attempt, second.status) == (StageStatus.FAILED, 2, 2, StageStatus.SUCCEEDED)
    assert first.worker_id != second.worker_id
    assert first.error and first.error["code"] == "worker_lost"


def test_a_frozen_worker_writes_nothing_when_it_wakes(
    supervised: Supervised, start_worker: StartWorker, reaper: Reaper
) -> None:
    supervised.script("""
        report("progress", pid=os.getpid(), by=(stage, attempt))
        while stage == "prepare" and attempt == 1:
            report("progress", by="the frozen one")
            time.sleep(0.1)
    """)
    job_id = supervised.submit()
    frozen = start_worker("cpu")
    pid = wait_until(lambda: supervised.job(job_id).progress)["pid"]
    supervised.freeze(frozen)
    supervised.expire_leases()
    supervised.runner = supervised.make_runner("wrk_second")
    wait_until(lambda: Resource.CPU in supervised.waiting())
    supervised.work()
    before = supervised.job(job_id)
    assert before.status is JobStatus.SUCCEEDED and before.progress and before.progress["by"] == ["train", 1]
    frozen.send_signal(signal.SIGCONT)
    wait_until(lambda: is_gone(pid))
    wait_until(lambda: any(worker.pid == frozen.pid and not worker.stage_run_id for worker in list_workers(supervised)))
    assert supervised.job(job_id) == before
    assert supervised.runs(job_id)[0].status is StageStatus.FAILED


def test_a_worker_that_is_told_to_leave_goes_in_order(supervised: Supervised, start_worker: StartWorker) -> None:
    supervised.script("""
        report("progress", pid=os.getpid())
        with report.holding_stop():
            while not report.stop_requested:
                time.sleep(0.02)
            raise StageStopped
    """)
    job_id = supervised.submit()
    worker = start_worker("cpu")
    pid = wait_until(lambda: supervised.job(job_id).progress)["pid"]
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(PATIENCE_SECONDS) == 0
    assert is_gone(pid)
    assert [run.status for run in supervised.runs(job_id)] == [StageStatus.CANCELLED, StageStatus.QUEUED]
    assert list_workers(supervised) == []


def test_what_a_dead_worker_did_not_live_to_store_is_stored_by_the_next(
    supervised: Supervised, start_worker: StartWorker, reaper: Reaper
) -> None:
    supervised.script("""
        if stage == "prepare" and attempt == 1:
            report("metrics", points=[{"step": step, "loss": 1 / step} for step in (1, 2, 3)])
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(600)
        report("metrics", points=[{"step": 4, "loss": 1 / 4}])
    """)
    job_id = supervised.submit()
    start_worker("cpu").wait(PATIENCE_SECONDS)
    supervised.expire_leases()
    supervised.runner = supervised.make_runner("wrk_second")
    wait_until(lambda: Resource.CPU in supervised.waiting())
    supervised.work(Resource.CPU)
    with supervised.session() as session:
        points = join_chunks(jobs.metric_chunks(session, job_id))
    assert [(point["step"], point["loss"]) for point in points] == [(step, 1 / step) for step in (1, 2, 3, 4)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_idle_worker_leaves_at_once(supervised: Supervised, start_worker: StartWorker, number: signal.Signals) -> None:
    worker = start_worker("notify")
    wait_until(lambda: list_workers(supervised))
    os.kill(worker.pid, number)
    assert worker.wait(PATIENCE_SECONDS) == 0
    assert list_workers(supervised) == []
