"""What was made is offered once it is verified, and not before."""

from typing import Any

import pytest
from starlette.testclient import TestClient
from supervising import Supervised

from app.db import write_session
from app.jobs import service
from app.jobs.spec import JobSpec
from app.jobs.states import JobStatus, Stage

SCRIPT = """
    names = {"train": "adapter/a", "merge": "merged/m", "convert": "gguf/x-q8_0.gguf"}
    if stage in names:
        (out / "file").write_text(f"{stage} {attempt}")
        files.append(OutputFile.of(out, out / "file", name=names[stage], kind=stage))
    if stage == "verify":
        if not (inputs.models_dir / "right").exists():
            found = {"kl": 9.0, "passed": False, "problems": ["far off"]}
            message = "gguf/x-q8_0.gguf is kept aside: far off."
            report("warning", code="verification_failed", message=message, artifact="gguf/x-q8_0.gguf", verification=found)
            raise StageFailure(FailureCode.VERIFICATION_FAILED, "It is not.")
        values["verification"] = {"gguf/x-q8_0.gguf": {"kl": 0.01, "passed": True}}
"""
EXPORTS = [{"kind": "adapter"}, {"kind": "merged"}, {"kind": "gguf"}]


@pytest.fixture
def job_id(supervised: Supervised) -> str:
    """A job whose files were found not to be right."""
    supervised.script(SCRIPT)
    job_id = supervised.submit(exports=EXPORTS, base_model="smollm2-135m-instruct")
    supervised.work()
    assert (supervised.job(job_id).error or {})["code"] == "verification_failed"
    return job_id


def list_artifacts(client: TestClient, job_id: str) -> dict[str, dict[str, Any]]:
    """Those that stages made, by name."""
    listed = client.get(f"/v1/jobs/{job_id}/artifacts").json()["data"]
    return {entry["name"]: entry for entry in listed if entry["kind"] not in ("manifest", "receipt")}


def retry(supervised: Supervised, job_id: str) -> Stage | None:
    (supervised.scripts / "right").touch()
    with write_session(supervised.engine) as session:
        job, _ = service.retry(session, job_id, JobSpec.model_validate(supervised.job(job_id).spec), {})
    supervised.work()
    assert supervised.job(job_id).status is JobStatus.SUCCEEDED
    return job.stage


def test_what_is_not_right_is_kept_aside(supervised: Supervised, client: TestClient, job_id: str) -> None:
    assert set(list_artifacts(client, job_id)) == {"adapter/a"}
    answer = client.get(f"/v1/jobs/{job_id}/artifacts/gguf/x-q8_0.gguf")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "artifact_not_verified")
    assert "is kept aside: far off." in answer.json()["error"]["message"]
    report = client.get(f"/v1/jobs/{job_id}/report", headers={"accept": "application/json"}).json()
    [found] = report["outcomes"]["verified"]
    assert (found["name"], found["offered"], found["kl"]) == ("gguf/x-q8_0.gguf", False, 9.0)
    [event] = [event for event in client.get(f"/v1/jobs/{job_id}/events").json()["data"] if event["type"] == "job.warning"]
    assert event["data"]["verification"]["kl"] == 9.0
    assert (supervised.storage.attempt_folder(job_id, "convert", 1) / "out" / "file").read_text() == "convert 1"


def test_it_is_made_again_and_offered_with_what_was_found(supervised: Supervised, client: TestClient, job_id: str) -> None:
    assert retry(supervised, job_id) is Stage.MERGE
    listed = list_artifacts(client, job_id)
    assert {name: entry["verification"] for name, entry in listed.items()} == {
        "adapter/a": None,
        "merged/m": None,
        "gguf/x-q8_0.gguf": {"kl": 0.01, "passed": True},
    }
    assert client.get(listed["gguf/x-q8_0.gguf"]["url"]).text == "convert 2"


def test_a_merged_model_without_a_gguf_is_not_held(supervised: Supervised, client: TestClient) -> None:
    supervised.script(SCRIPT)
    job_id = supervised.submit(exports=EXPORTS[:2], base_model="smollm2-135m-instruct")
    supervised.work()
    assert set(list_artifacts(client, job_id)) == {"adapter/a", "merged/m"}
