"""What stays on disk of jobs in all their states, and what a sweep removes."""

import hashlib
import json
import os
import threading
import time
from pathlib import Path

import pytest
from sqlmodel import select

from app import blobs
from app.db import SQLITE_PRAGMAS, read_session, write_session
from app.jobs import stage_runs
from app.jobs.spec import SPEC_VERSION, JobSpec
from app.jobs.states import JobStatus, Stage, StageStatus
from app.jobs.tidying import tidy
from app.models import Artifact, Blob, File, Job, StageRun
from app.reaper import Reaper
from app.sweep import SAFE_AGE_SECONDS, sweep

SPEC = JobSpec.model_validate({"base_model": "m", "dataset": {"file": "file-1"}, "checkpoints": {"keep": 2}})
SUCCEEDED, FAILED, RUNNING = StageStatus.SUCCEEDED, StageStatus.FAILED, StageStatus.RUNNING


def write_checkpoint(folder: Path, step: int, *, damaged: bool = False) -> None:
    path = folder / "out" / "checkpoints" / f"step-{step:06d}"
    path.mkdir(parents=True)
    (path / "weights").write_bytes(b"12345678"[: 3 if damaged else 8])
    (path / "manifest.json").write_text(json.dumps({"files": {"weights": {"bytes": 8, "sha256": "…"}}}))


@pytest.fixture
def make_job(engine, storage):
    def make_job(status: JobStatus, *attempts: tuple) -> str:
        """An attempt is (stage, number, status), and for training the steps of its checkpoints."""
        with write_session(engine) as session:
            job = Job(base_model="m", spec=SPEC.model_dump(mode="json"), spec_version=SPEC_VERSION, status=status)
            session.add(job)
            session.flush()
            for stage, attempt, ended, *steps in attempts:
                run = StageRun(job_id=job.id, stage=stage, attempt=attempt, status=ended, resource=stage.resource)
                session.add(run)
                folder = storage.attempt_folder(job.id, stage, attempt)
                (folder / "out" / "adapter" / "deep").mkdir(parents=True)
                for name in (
                    "input.json",
                    "events.jsonl",
                    "result.json",
                    "log.txt",
                    "out/a",
                    "out/adapter/b",
                    "out/adapter/deep/c",
                ):
                    (folder / name).write_text(name)
                for step in steps:
                    write_checkpoint(folder, step)
                if steps:
                    (folder / "out" / "checkpoints" / ".part-000099").mkdir()
        return job.id

    return make_job


@pytest.fixture
def tidied(engine, storage):
    def tidied(job_id: str) -> set[str]:
        """The files that are left, the checkpoints as folders."""
        for _ in range(2):
            with read_session(engine) as session:
                tidy(session, storage, session.get_one(Job, job_id))
        folder = storage.job_folder(job_id)
        files = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        return {path.rpartition("/")[0] if "/step-" in path else path for path in files}

    return tidied


def test_a_job_that_succeeded_keeps_logs_adapter_and_newest_checkpoints(make_job, tidied):
    job_id = make_job(
        JobStatus.SUCCEEDED,
        (Stage.PREPARE, 1, SUCCEEDED),
        (Stage.TRAIN, 1, FAILED, 10, 20),
        (Stage.TRAIN, 2, SUCCEEDED, 30, 40),
        (Stage.MERGE, 1, SUCCEEDED),
    )
    assert tidied(job_id) == {
        "prepare/1/log.txt",
        "train/1/log.txt",
        "train/2/log.txt",
        "train/2/out/adapter/b",
        "train/2/out/adapter/deep/c",
        "train/2/out/checkpoints/step-000030",
        "train/2/out/checkpoints/step-000040",
        "merge/1/log.txt",
    }


def test_a_job_that_failed_keeps_what_its_retry_goes_on_from(make_job, tidied):
    job_id = make_job(
        JobStatus.FAILED,
        (Stage.PREPARE, 1, SUCCEEDED),
        (Stage.PREPARE, 2, SUCCEEDED),
        (Stage.TRAIN, 1, FAILED, 10, 20),
        (Stage.TRAIN, 2, FAILED, 30),
        (Stage.TRAIN, 3, StageStatus.CANCELLED),
    )
    whole = {f"prepare/2/out/{name}" for name in ("a", "adapter/b", "adapter/deep/c")}
    logs = {f"prepare/{attempt}/log.txt" for attempt in (1, 2)} | {f"train/{attempt}/log.txt" for attempt in (1, 2, 3)}
    assert tidied(job_id) == whole | logs | {f"train/{place}" for place in (
        "1/out/checkpoints/step-000020", "2/out/checkpoints/step-000030",
    )}  # fmt: skip


def test_what_runs_is_not_touched_but_makes_older_checkpoints_needless(make_job, tidied, storage):
    job_id = make_job(JobStatus.RUNNING, (Stage.TRAIN, 1, FAILED, 10, 20), (Stage.TRAIN, 2, RUNNING, 5))
    left = tidied(job_id)
    assert {"train/2/input.json", "train/2/out/a", "train/2/out/checkpoints/step-000005"} <= left
    assert (storage.attempt_folder(job_id, "train", 2) / "out" / "checkpoints" / ".part-000099").is_dir()
    assert {path for path in left if path.startswith("train/1")} == {
        "train/1/log.txt", "train/1/events.jsonl", "train/1/out/checkpoints/step-000020",
    }  # fmt: skip
    write_checkpoint(storage.attempt_folder(job_id, "train", 2), 15)
    assert "train/1/out/checkpoints/step-000020" not in tidied(job_id)


def test_a_damaged_checkpoint_takes_no_whole_ones_place(make_job, tidied, storage):
    job_id = make_job(JobStatus.SUCCEEDED, (Stage.TRAIN, 1, FAILED, 10), (Stage.TRAIN, 2, SUCCEEDED))
    write_checkpoint(storage.attempt_folder(job_id, "train", 2), 20, damaged=True)
    assert "train/1/out/checkpoints/step-000010" in tidied(job_id)


def test_an_inspection_leaves_its_log(client, upload, engine, storage):
    file_id = upload()["id"]
    folder = storage.file_folder(file_id) / "inspect" / "1"
    (folder / "out").mkdir(parents=True)
    (folder / "log.txt").touch()
    for _ in range(2):
        sweep(engine, storage)
        assert (folder / "out").exists(), "it has not ended"
    with write_session(engine) as session:
        [run] = stage_runs.inspections(session, file_id)
        run.status = FAILED
        session.add(run)
    sweep(engine, storage)
    assert [path.name for path in folder.iterdir()] == ["log.txt"]


def test_folders_without_a_row_go(engine, storage, make_job, client, upload):
    job_id, file_id = make_job(JobStatus.QUEUED), upload()["id"]
    for folder in (storage.job_folder(job_id), storage.job_folder("job_x"), storage.file_folder(file_id)):
        (folder / "a" / "1").mkdir(parents=True, exist_ok=True)
    (storage.file_folder("file-x") / "a").mkdir(parents=True)
    sweep(engine, storage)
    assert [folder.name for folder in storage.job_folders()] == [job_id]
    assert [folder.name for folder in storage.file_folders()] == [file_id]


def grow_old(path: Path, monkeypatch) -> None:
    """A file's ctime cannot be set, so the clock is."""
    past = time.time() - 2 * SAFE_AGE_SECONDS
    os.utime(path, (past, past))
    latest = time.time() + 2 * SAFE_AGE_SECONDS
    monkeypatch.setattr("app.blobs.time.time", lambda: latest)


def test_an_upload_whose_server_died_goes(engine, storage, monkeypatch):
    stale, fresh = storage.upload("upload_1"), storage.upload("upload_2")
    stale.write_text("half")
    fresh.write_text("half")
    os.utime(stale, (1, 1))
    sweep(engine, storage)
    assert list(storage.uploads()) == [fresh]


def test_content_without_a_name_goes_and_young_content_stays(
    client, engine, storage, upload, make_job, make_artifact, monkeypatch
):
    kept = upload()
    job_id = make_job(JobStatus.SUCCEEDED)
    replaced = make_artifact(job_id, "gguf/a", b"old")
    new = make_artifact(job_id, "gguf/b", b"new")
    with write_session(engine) as session:
        session.delete(session.exec(select(Artifact).where(Artifact.name == "gguf/a")).one())
    stray = storage.blob("ab" + "0" * 62)
    stray.parent.mkdir(exist_ok=True)
    stray.write_text("of a transaction that was rolled back, or is not over")
    sweep(engine, storage)
    assert not storage.blob(replaced).exists() and stray.exists()
    grow_old(stray, monkeypatch)
    sweep(engine, storage)
    assert not stray.exists() and storage.blob(new).exists()
    assert client.get(f"/v1/files/{kept['id']}/content").status_code == 200
    with read_session(engine) as session:
        assert len(session.exec(select(Blob)).all()) == 2


def test_content_that_is_named_again_while_it_is_swept_stays(engine, storage, make_job, make_artifact, monkeypatch):
    """The publisher begins when the sweep has looked for the row and is about to remove the file."""
    first, second = make_job(JobStatus.SUCCEEDED), make_job(JobStatus.SUCCEEDED)
    sha256 = make_artifact(first, "gguf/a", b"content")
    with write_session(engine) as session:
        session.delete(session.exec(select(Artifact)).one())
    publisher = threading.Thread(target=make_artifact, args=[second, "gguf/a", b"content"])
    remove = storage.remove_blob

    def remove_late(name: str) -> None:
        publisher.start()
        publisher.join(1)
        remove(name)

    monkeypatch.setattr(storage, "remove_blob", remove_late)
    sweep(engine, storage)
    publisher.join()
    assert storage.blob(sha256).read_bytes() == b"content"


def test_content_that_goes_while_a_sweep_looks_is_no_trouble(engine, storage, make_job, make_artifact, monkeypatch):
    """Somebody deletes a file between the list of contents and the look at its age."""
    make_artifact(make_job(JobStatus.SUCCEEDED), "gguf/a", b"content")
    [here] = storage.blobs()
    monkeypatch.setattr(storage, "blobs", lambda: iter([storage.blob("ab" + "0" * 62), here]))
    grow_old(here, monkeypatch)
    with read_session(engine) as session:
        assert blobs.find_strays(session, storage, SAFE_AGE_SECONDS) == []


def test_sweeps_beside_publications_lose_nothing(engine, storage, tmp_path, monkeypatch):
    """Writers name the same few contents and drop them again, while sweeps run that take all content for old.

    SQLite gives its lock to whoever looks next and not in turn, so that one of four who never rest may wait for long.
    """
    monkeypatch.setattr("app.db.SQLITE_PRAGMAS", (*SQLITE_PRAGMAS, "busy_timeout=120000"))
    monkeypatch.setattr("app.sweep.SAFE_AGE_SECONDS", -60.0)
    over, problems = threading.Event(), []

    def publish(number: int) -> None:
        try:
            for round in range(40):
                content = f"content {round % 3}".encode()
                source = tmp_path / f"output-{number}"
                source.unlink(missing_ok=True)
                source.write_bytes(content)
                sha256 = hashlib.sha256(content).hexdigest()
                with write_session(engine) as session:
                    blobs.keep(session, sha256, len(content))
                    storage.ingest(source, sha256)
                    file = File(filename="f", purpose="fine-tune", blob_sha256=sha256)
                    session.add(file)
                assert storage.blob(sha256).read_bytes() == content
                with write_session(engine) as session:
                    session.delete(session.get_one(File, file.id))
        except BaseException as problem:
            problems.append(problem)

    def sweep_on() -> None:
        while not over.is_set():
            sweep(engine, storage)

    sweeper = threading.Thread(target=sweep_on)
    publishers = [threading.Thread(target=publish, args=[number]) for number in range(3)]
    for thread in (sweeper, *publishers):
        thread.start()
    for thread in publishers:
        thread.join()
    over.set()
    sweeper.join()
    assert problems == []
    sweep(engine, storage)
    assert list(storage.blobs()) == []


def test_the_reaper_sweeps_at_its_start(engine, settings, storage):
    settings.reaper_seconds = 0.05
    storage.job_folder("job_x").mkdir(parents=True)
    reaper = Reaper(engine, settings)
    reaper.start()
    deadline = time.monotonic() + 100
    while storage.job_folder("job_x").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    reaper.stop()
