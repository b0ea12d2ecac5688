"""A worker that trains is told to leave, at moments where leaving is hard: it goes within its grace, and nothing is lost."""

import os
import re
import signal
from pathlib import Path

import pytest
from supervising import PATIENCE_SECONDS, Halts, StartWorker, Supervised, wait_until
from test_interrupted_training import find_stage, read_losses, save_base_model, write_rows

from app.jobs.states import JobStatus, Resource, Stage, StageStatus

pytestmark = [pytest.mark.ml, pytest.mark.timeout(900)]

STEPS = 8
MOMENTS = [
    "Loading the libraries",
    "Loading the base model",
    "Measuring the held-out loss of the base model",
    ".part-000003/manifest.json",
    "Measuring the held-out loss of the trained model",
]


def is_asked_to_leave(pid: int) -> bool:
    """Whether a process that is stopped has a SIGTERM waiting."""
    pending = re.findall(r"^(?:Sig|Shd)Pnd:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.M)
    return any(int(signals, 16) >> (signal.SIGTERM - 1) & 1 for signals in pending)


def test_a_worker_leaves_at_any_moment_of_the_training(
    supervised: Supervised, start_worker: StartWorker, halts: Halts, tmp_path: Path
) -> None:
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
    for number, moment in enumerate(MOMENTS, 1):
        attempt = supervised.storage.attempt_folder(job_id, Stage.TRAIN, number)
        halts.name(moment)
        worker = start_worker("gpu")
        pid = halts.wait(attempt)
        worker.send_signal(signal.SIGTERM)
        wait_until(lambda pid=pid: is_asked_to_leave(pid))
        halts.name("")
        os.kill(pid, signal.SIGCONT)
        assert worker.wait(PATIENCE_SECONDS) == 0
        log = (tmp_path / f"worker-{number - 1}.log").read_text()
        assert "its process ended with exit status 0" in log, "it has left within its grace"
        assert find_stage(attempt) is None
        assert not list(attempt.rglob(".*"))
        runs = [run for run in supervised.runs(job_id) if run.stage is Stage.TRAIN]
        assert not (attempt / "out" / "adapter").exists()
        assert [run.status for run in runs] == [StageStatus.CANCELLED] * number + [StageStatus.QUEUED]
    supervised.work()
    for name in (job_id, whole_id):
        assert supervised.job(name).status is JobStatus.SUCCEEDED
    assert read_losses(supervised, job_id) == pytest.approx(read_losses(supervised, whole_id), rel=1e-4)
