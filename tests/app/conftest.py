"""Steps that many tests take. No worker runs here: what one would write, the tests write through the same functions."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sample_rows import DATASET
from sqlalchemy import Engine
from starlette.testclient import TestClient

from app import blobs
from app.db import write_session
from app.jobs import repository, stage_runs
from app.jobs.states import JobStatus, Resource
from app.models import Artifact, File, StageRun
from app.settings import Settings
from app.storage import Storage


@pytest.fixture
def storage(settings: Settings) -> Storage:
    return Storage(settings.root)


@pytest.fixture
def upload(client: TestClient) -> Callable[..., dict[str, Any]]:
    def upload(content: bytes = DATASET, name: str = "rows.jsonl") -> dict[str, Any]:
        answer = client.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": (name, content)})
        assert answer.status_code == 200, answer.text
        return answer.json()

    return upload


@pytest.fixture
def submit(client: TestClient, upload: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    def submit(**fields: Any) -> dict[str, Any]:
        spec = {"base_model": "smollm2-135m-instruct", "dataset": {"file": upload()["id"]}} | fields
        answer = client.post("/v1/jobs", json=spec)
        assert answer.status_code == 201, answer.text
        return answer.json()

    return submit


@pytest.fixture
def take_up(engine: Engine) -> Callable[[str], StageRun]:
    """What a worker does first: claims the job's waiting run and starts the job."""

    def take_up(job_id: str) -> StageRun:
        with write_session(engine) as session:
            for resource in Resource:
                while run := stage_runs.claim(session, resource, "wrk_test", 60):
                    if run.job_id == job_id:
                        job = repository.get(session, job_id)
                        repository.set_status(session, job, JobStatus.RUNNING, "The job started.")
                        return run
        raise AssertionError(f"{job_id} does not wait")

    return take_up


@pytest.fixture
def end_job(engine: Engine) -> Callable[[str, JobStatus], None]:
    def end_job(job_id: str, status: JobStatus) -> None:
        with write_session(engine) as session:
            repository.set_status(session, repository.get(session, job_id), status, f"The job {status}.")

    return end_job


@pytest.fixture
def inspected(engine: Engine) -> Callable[..., None]:
    """The verdict that a cpu worker would have come to about a file."""

    def inspected(file_id: str, *, report: dict[str, Any] | None = None, problem: str | None = None) -> None:
        with write_session(engine) as session:
            file = session.get_one(File, file_id)
            file.status, file.status_details, file.report = ("error" if problem else "processed"), problem, report
            session.add(file)

    return inspected


@pytest.fixture
def make_artifact(engine: Engine, storage: Storage, tmp_path: Path) -> Callable[[str, str, bytes], str]:
    """Publishes content as a job's artifact; returns its hash."""

    def make_artifact(job_id: str, name: str, content: bytes) -> str:
        path = tmp_path / "output"
        path.write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        with write_session(engine) as session:
            blobs.keep(session, sha256, len(content))
            storage.ingest(path, sha256)
            session.add(Artifact(job_id=job_id, name=name, kind=name.split("/")[0], blob_sha256=sha256))
        path.unlink()
        return sha256

    return make_artifact
