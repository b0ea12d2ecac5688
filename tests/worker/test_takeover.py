"""What workers that were killed leave behind, and what the next one does about it before any lease runs out."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from supervising import PATIENCE_SECONDS, StartWorker, Supervised, is_gone, wait_until

from app.db import write_session
from app.jobs import stage_runs
from app.jobs.states import JobStatus, Resource, StageStatus
from app.models import Worker
from worker.leftovers import MARK, RECORD, end_group, write_record
from worker.takeover import presence, take_over

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """A process that leads a group, with the mark of the attempt at `tmp_path / "1"`."""
    (tmp_path / "1").mkdir()
    process = subprocess.Popen(SLEEPER, process_group=0, env=os.environ | {MARK: str(tmp_path / "1")})
    yield process
    process.kill()
    process.wait()


def test_what_a_killed_worker_ran_is_ended_and_taken_back_by_the_next(
    supervised: Supervised, start_worker: StartWorker
) -> None:
    supervised.script("""
        if stage == "prepare" and attempt == 1:
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            report("progress", pid=os.getpid(), child=child.pid)
            time.sleep(600)
    """)
    job_id = supervised.submit()
    worker = start_worker("cpu")
    progress = wait_until(lambda: supervised.job(job_id).progress)
    worker.kill()
    wait_until(lambda: is_gone(progress["pid"]))
    assert not is_gone(progress["child"]), "the kernel ends only the stage's own process"
    start_worker("cpu,gpu")
    wait_until(lambda: supervised.job(job_id).status is JobStatus.SUCCEEDED)
    assert is_gone(progress["child"])
    first, second, _ = supervised.runs(job_id)
    assert (first.status, first.error["code"] if first.error else None) == (StageStatus.FAILED, "worker_lost")
    assert (second.attempt, second.status) == (2, StageStatus.SUCCEEDED)


def test_a_new_worker_leaves_live_ones_alone(supervised: Supervised, start_worker: StartWorker) -> None:
    supervised.script("""
        report("progress", pid=os.getpid())
        while stage == "prepare" and not (inputs.models_dir / "go on").exists():
            time.sleep(0.05)
    """)
    job_id = supervised.submit()
    busy = start_worker("cpu")
    pid = wait_until(lambda: supervised.job(job_id).progress)["pid"]
    busy.send_signal(signal.SIGSTOP)
    take_over(supervised.engine, supervised.storage)
    busy.send_signal(signal.SIGCONT)
    start_worker("gpu")
    assert not is_gone(pid)
    (supervised.scripts / "go on").touch()
    wait_until(lambda: supervised.job(job_id).status is JobStatus.SUCCEEDED)
    assert [run.attempt for run in supervised.runs(job_id)] == [1, 1]
    # the worker may be tidying the folder: what goes meanwhile is passed over
    left = [names for _, _, names in os.walk(supervised.storage.job_folder(job_id)) if RECORD in names]
    assert left == []


def test_a_worker_that_left_in_order_is_not_taken_over(supervised: Supervised) -> None:
    supervised.submit()
    with presence(supervised.storage, "wrk_1"), write_session(supervised.engine) as session:
        session.add(Worker(id="wrk_1", host="h", pid=1, queues=["cpu"]))
        assert stage_runs.claim(session, Resource.CPU, "wrk_1", 600)
    take_over(supervised.engine, supervised.storage)
    with supervised.session() as session:
        assert [run.status for run in stage_runs.held_by(session, "wrk_1")] == [StageStatus.RUNNING]
        assert session.get(Worker, "wrk_1")
    assert not list(supervised.storage.worker_locks())


def test_a_new_attempt_ends_the_processes_of_the_one_before(supervised: Supervised) -> None:
    # what has ended and was not reaped yet has no `exe` any more
    supervised.script("values['alive'] = os.path.exists(f'/proc/{(inputs.models_dir / \"pid\").read_text()}/exe')")
    job_id = supervised.submit()
    abandoned = supervised.storage.attempt_folder(job_id, "prepare", 7)
    abandoned.mkdir(parents=True)
    process = subprocess.Popen(SLEEPER, start_new_session=True)
    write_record(abandoned, process.pid)
    (supervised.scripts / "pid").write_text(str(process.pid))
    with supervised.working():
        assert process.wait(PATIENCE_SECONDS) == -signal.SIGKILL
    assert supervised.runs(job_id)[0].outputs == {"values": {"alive": False}, "files": []}


def test_a_group_that_lost_its_leader_is_known_by_its_mark(tmp_path: Path) -> None:
    attempt = tmp_path / "1"
    attempt.mkdir()
    source = f"import subprocess; print(subprocess.Popen({SLEEPER!r}, stdout=subprocess.DEVNULL).pid)"
    leader = subprocess.Popen(
        [sys.executable, "-c", source], start_new_session=True, stdout=subprocess.PIPE, env=os.environ | {MARK: str(attempt)}
    )
    write_record(attempt, leader.pid)
    child = int(leader.communicate()[0])
    assert not is_gone(child)
    assert end_group(attempt)
    assert is_gone(child)
    assert not end_group(attempt)


def test_a_start_that_is_told_a_second_later_is_the_same(sleeper: subprocess.Popen, tmp_path: Path) -> None:
    attempt = tmp_path / "1"
    write_record(attempt, sleeper.pid)
    record = json.loads((attempt / RECORD).read_text())
    (attempt / RECORD).write_text(json.dumps(record | {"started": record["started"] + 1.0}))
    assert end_group(attempt)
    assert sleeper.wait(PATIENCE_SECONDS) == -signal.SIGKILL


def test_a_number_that_was_given_away_again_is_left_alone(sleeper: subprocess.Popen, tmp_path: Path) -> None:
    attempt = tmp_path / "1"
    write_record(attempt, sleeper.pid)
    record = json.loads((attempt / RECORD).read_text())
    (attempt / RECORD).write_text(json.dumps(record | {"started": record["started"] - 3600}))
    assert not end_group(attempt)
    other = subprocess.Popen(SLEEPER, process_group=sleeper.pid)  # as a member, without the mark
    sleeper.kill()
    sleeper.wait()
    assert not end_group(attempt)
    assert psutil.Process(other.pid).status() != psutil.STATUS_ZOMBIE
    other.kill()
    other.wait()
