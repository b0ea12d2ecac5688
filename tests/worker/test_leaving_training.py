"""A worker that trains is told to leave, at moments where leaving is hard: it goes within its grace, and nothing is lost."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from supervising import StartWorker, Supervised, wait_until
from test_interrupted_training import find_stage, read_losses, save_base_model, write_rows

from app.jobs.states import JobStatus, Resource, Stage, StageStatus
from worker.runner import GRACE_SECONDS, Ending

pytestmark = [pytest.mark.ml, pytest.mark.timeout(900)]

STEPS = 20
Moment = Callable[[Path], object]


def says(words: str) -> Moment:
    def is_said(attempt: Path) -> bool:
        path = attempt / "events.jsonl"
        return path.exists() and words in path.read_text()

    return is_said


def writes_a_checkpoint(attempt: Path) -> list[Path]:
    return list((attempt / "out" / "checkpoints").glob(".part-*"))


MOMENTS: list[Moment] = [
    lambda attempt: (attempt / "events.jsonl").exists(),
    says("Loading the base model"),
    says("Measuring the held-out loss of the base model"),
    writes_a_checkpoint,
    says("Measuring the held-out loss of the trained model"),
]


def test_a_worker_leaves_at_any_moment_of_the_training(
    supervised: Supervised, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH")
    save_base_model(supervised.scripts / "tiny")
    spec = {
        "base_model": "tiny",
        "dataset": {"file": supervised.upload(write_rows(300)).id, "validation_fraction": 0.3},
        "training": {"max_steps": STEPS, "max_seq_length": 64, "learning_rate": 1e-3},
        "checkpoints": {"every_steps": 1},
        "evaluation": {"samples": 0},
    }
    job_id, whole_id = supervised.submit(**spec), supervised.submit(**spec)
    supervised.work(Resource.CPU)
    left = []
    for number, moment in enumerate(MOMENTS, 1):
        attempt = supervised.storage.attempt_folder(job_id, Stage.TRAIN, number)
        worker = start_worker("gpu")
        wait_until(lambda attempt=attempt, moment=moment: moment(attempt), seconds=200)
        worker.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert worker.wait(GRACE_SECONDS[Ending.YIELDED] + 10) == 0
        left.append(time.monotonic() - began)
        assert find_stage(attempt) is None
        assert not list(attempt.rglob(".*"))
        runs = [run for run in supervised.runs(job_id) if run.stage is Stage.TRAIN]
        if runs[-1].status is StageStatus.SUCCEEDED:  # it was done before it could be stopped
            break
        assert not (attempt / "out" / "adapter").exists()
        assert [run.status for run in runs] == [StageStatus.CANCELLED] * number + [StageStatus.QUEUED]
    print("seconds to leave:", [round(seconds, 1) for seconds in left])
    assert max(left) < GRACE_SECONDS[Ending.YIELDED]
    supervised.work()
    for name in (job_id, whole_id):
        assert supervised.job(name).status is JobStatus.SUCCEEDED
    assert read_losses(supervised, job_id) == pytest.approx(read_losses(supervised, whole_id), rel=1e-4)
