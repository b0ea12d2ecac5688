"""The service on a data folder without room: it says so, it stays readable, and it can be told to make room."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_disk import fill, mounted
from sqlmodel import select
from starlette.testclient import TestClient

from app.db import read_session
from app.files.multipart import Form
from app.models import Blob, Job
from app.reserve import RESERVE_BYTES, keep_reserve, reserve_of
from app.settings import Settings

CONTENT = b'{"text": "a"}\n' * 200_000


@pytest.fixture
def settings(environment: None, migrated_database: Path, tmp_path: Path) -> Iterator[Settings]:
    """A data folder with room for the database, its reserve four times over, and little else."""
    with mounted(tmp_path / "data", 5 * RESERVE_BYTES) as folder:
        shutil.copy(migrated_database, folder)
        yield Settings()


def post(client: TestClient, content: bytes = CONTENT, **options):
    return client.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("rows.jsonl", content)}, **options)


def test_an_upload_that_cannot_fit_is_refused_before_it_is_read(client, settings):
    fill(settings.root).open("r+b").truncate(1 << 20)
    with (settings.root / "filler").open("ab") as file:
        file.write(bytes(5 * RESERVE_BYTES - (6 << 20) - file.tell()))
    answer = post(client, bytes(12 << 20))
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (507, "disk_full")
    assert "12.0 MB" in error["message"] and "free" in error["message"]
    assert list((settings.root / "uploads").glob("*")) == []


@pytest.mark.parametrize("content", [CONTENT, CONTENT[:14]], ids=["written at once", "buffered"])
def test_an_upload_that_fills_the_disk_leaves_nothing_behind(client, engine, settings, monkeypatch, content):
    """The disk is filled by somebody else while the upload arrives."""
    feed = Form.feed

    def feed_and_fill(form: Form, data: bytes) -> None:
        fill(settings.root)
        feed(form, data)

    with monkeypatch.context() as patch:
        patch.setattr(Form, "feed", feed_and_fill)
        answer = post(client, content)
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "disk_full")
    assert list((settings.root / "uploads").glob("*")) == []
    assert not (settings.root / "blobs").exists()
    assert client.get("/v1/files").json()["data"] == []
    with read_session(engine) as session:
        assert session.exec(select(Blob)).all() == []
    (settings.root / "filler").unlink()
    assert post(client, content).status_code == 200


def test_on_a_full_disk_the_service_reads_and_a_job_can_be_deleted(client, engine, settings, submit, storage):
    job_id = submit()["id"]
    folder = storage.job_folder(job_id)
    folder.mkdir(parents=True)
    keep_reserve(engine)
    reserve = reserve_of(engine)
    assert reserve.stat().st_size == RESERVE_BYTES
    fill(folder)
    assert client.get(f"/v1/jobs/{job_id}").json()["status"] == "queued"
    assert client.get("/readyz").status_code in (200, 503)
    assert reserve.exists(), "reading takes nothing"
    assert client.delete(f"/v1/jobs/{job_id}").status_code == 200
    assert not folder.exists() and not reserve.exists()
    keep_reserve(engine)
    assert reserve.stat().st_size == RESERVE_BYTES


def test_without_a_reserve_a_change_is_refused_and_nothing_is_lost(client, engine, settings, submit):
    job_id = submit()["id"]
    filler = fill(settings.root)
    answers = [client.post(f"/v1/jobs/{job_id}/cancel")]
    while answers[-1].status_code in (201, 202) and len(answers) < 3000:
        answers.append(submit_again(client))
    assert (answers[-1].status_code, answers[-1].json()["error"]["code"]) == (507, "disk_full")
    assert client.get(f"/v1/jobs/{job_id}").json()["status"] in ("queued", "cancelled")
    filler.unlink()
    assert submit_again(client).status_code == 201
    with read_session(engine) as session:
        assert session.get(Job, job_id)


def submit_again(client: TestClient):
    file_id = client.get("/v1/files").json()["data"][0]["id"]
    return client.post("/v1/jobs", json={"base_model": "smollm2-135m-instruct", "dataset": {"file": file_id}})
