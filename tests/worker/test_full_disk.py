"""Every way in which a full disk shows itself, and what becomes of a job whose disk is full."""

import errno
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from small_disk import fill, mounted
from sqlalchemy.exc import OperationalError
from supervising import Supervised

from app.disk import free_bytes, is_full
from app.jobs.states import FailureCode, JobStatus, Stage, StageStatus
from app.storage import Storage
from worker.space import SPARE_BYTES, require_space
from worker.stages import DISK_FULL_STATUS, Inputs, StageFailure


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "small", 4 << 20) as folder:
        yield folder


BIG = 8 << 20


def write_text(folder: Path) -> None:
    (folder / "events.jsonl").write_text("x" * BIG)


def append_line(folder: Path) -> None:
    with (folder / "events.jsonl").open("a") as file:
        while True:
            file.write("x" * 1000 + "\n")
            file.flush()


def save_array(folder: Path) -> None:
    np.save(folder / "input_ids.npy", np.zeros(BIG, dtype=np.int8))


def write_parquet(folder: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table({"a": np.random.default_rng(0).random(BIG // 8)}), folder / "a.parquet")


def save_safetensors(folder: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(BIG, dtype=np.int8)}, folder / "model.safetensors")


def save_torch(folder: Path) -> None:
    import torch

    torch.save({"a": torch.zeros(BIG // 4)}, folder / "optimizer.pt")


def link_where_no_folder_can_be(folder: Path) -> None:
    fill(folder)
    while True:  # folders are small: this takes the last of what is left of the file system's count of files
        (folder / "a").write_bytes(bytes(4096))


def commit(folder: Path) -> None:
    connection = sqlite3.connect(folder / "tunesmith.db")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE chunk (points BLOB)")
    while True:
        connection.execute("INSERT INTO chunk VALUES (zeroblob(100000))")
        connection.commit()


WRITES = [
    write_text,
    append_line,
    save_array,
    write_parquet,
    save_safetensors,
    save_torch,
    link_where_no_folder_can_be,
    commit,
]


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_every_write_tells_a_full_disk(write: Callable[[Path], None], small_disk: Path) -> None:
    with pytest.raises(Exception) as caught:
        write(small_disk)
    assert is_full(caught.value, small_disk), repr(caught.value)


@pytest.mark.parametrize(
    "problem",
    [
        OSError(errno.EACCES, "Permission denied"),
        OSError("123 requested and 45 written"),
        RuntimeError("CUDA out of memory"),
        OperationalError("UPDATE", {}, sqlite3.OperationalError("database is locked")),
        StageFailure(FailureCode.HUB_UNAVAILABLE, "The hub could not be reached."),
    ],
    ids=repr,
)
def test_other_failures_do_not(problem: Exception, tmp_path: Path) -> None:
    assert not is_full(problem, tmp_path)


def test_the_cause_of_an_error_counts(tmp_path: Path) -> None:
    error = RuntimeError("the shard could not be written")
    error.__cause__ = OSError(errno.EDQUOT, "Disk quota exceeded")
    assert is_full(error, tmp_path)


def test_too_little_room_is_told_before_the_work_with_both_figures(small_disk: Path) -> None:
    with pytest.raises(StageFailure) as caught:
        require_space(small_disk / "not" / "there" / "yet", 100 << 20, "The merged model")
    failure = caught.value
    assert failure.code == FailureCode.DISK_FULL
    assert failure.message == ("The merged model needs 137.0 MB on the disk of the data folder, where 4.0 MB are free.")
    assert failure.hint and "retry the job" in failure.hint
    require_space(Path.cwd(), free_bytes(Path.cwd()) // 2 - SPARE_BYTES, "Something smaller")


def run_stage(attempt: Path, supervised: Supervised, source: str) -> int:
    """The stage as the supervisor starts it; its exit status."""
    supervised.script(source)
    job_id = supervised.submit()
    attempt.mkdir()
    folder = supervised.scripts
    inputs = Inputs(cache_dir=folder, models_dir=folder, converter_dir=folder, title="tiny").to_json()
    spec = supervised.job(job_id).spec
    (attempt / "input.json").write_text(json.dumps({"stage": "train", "spec": spec, "inputs": inputs}))
    with (attempt / "log.txt").open("w") as log:
        command = [sys.executable, "-m", "worker.stages", str(attempt)]
        return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log).returncode


def test_the_partial_output_goes_so_that_the_failure_can_be_said(small_disk: Path, supervised: Supervised) -> None:
    status = run_stage(small_disk / "1", supervised, """
        (out / "checkpoints" / "step-000010").mkdir(parents=True)
        (out / "checkpoints" / "step-000010" / "weights").write_text("whole")
        (out / "checkpoints" / ".part-000020").mkdir()
        (out / "checkpoints" / ".part-000020" / "weights").write_bytes(bytes(8 << 20))
    """)  # fmt: skip
    error = json.loads((small_disk / "1" / "result.json").read_text())["error"]
    assert status == 0 and error["code"] == "disk_full"
    assert error["message"] == "The disk of the data folder is full: 0.0 MB were free when a write failed."
    assert [str(path.relative_to(small_disk / "1" / "out")) for path in (small_disk / "1" / "out").rglob("*")] == [
        "checkpoints", "checkpoints/step-000010", "checkpoints/step-000010/weights",
    ]  # fmt: skip
    assert "No space left" in (small_disk / "1" / "log.txt").read_text()


def test_a_stage_that_cannot_write_its_result_says_so_by_its_exit_status(small_disk: Path, supervised: Supervised) -> None:
    status = run_stage(small_disk / "1", supervised, """
        with open(out.parents[1] / "filler", "wb", buffering=0) as file:
            while file.write(bytes(1 << 16)):
                pass
    """)  # fmt: skip
    assert status == DISK_FULL_STATUS
    assert not (small_disk / "1" / "result.json").exists()


def test_a_job_whose_stage_filled_the_disk_fails_as_such(supervised: Supervised) -> None:
    supervised.script(f"if stage == 'train': os._exit({DISK_FULL_STATUS})")
    job_id = supervised.submit()
    supervised.work()
    job = supervised.job(job_id)
    assert job.status is JobStatus.FAILED and job.error
    assert (job.error["code"], job.error["log"]) == ("disk_full", "train/1/log.txt")
    assert [run.status for run in supervised.runs(job_id)] == [StageStatus.SUCCEEDED, StageStatus.FAILED]
    assert Storage(supervised.settings.root).attempt_folder(job_id, Stage.TRAIN, 1).is_dir()


@pytest.mark.provokes("disk_full")
def test_a_mapped_page_without_room_counts_as_a_full_disk(small_disk: Path, supervised: Supervised) -> None:
    supervised.script("""
        import numpy
        numpy.lib.format.open_memmap(out / "input_ids.npy", mode="w+", dtype="int8", shape=(8 << 20,))[:] = 1
    """)
    job_id = supervised.submit()
    supervised.storage.job_folder(job_id).parent.mkdir()
    supervised.storage.job_folder(job_id).symlink_to(small_disk)
    supervised.work()
    error = supervised.job(job_id).error
    assert error and error["code"] == "disk_full"
    assert free_bytes(small_disk) > 3 << 20, "the partial output is gone"
