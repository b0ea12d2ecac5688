"""What was made is offered once it is verified, and not before."""

from typing import Any

from starlette.testclient import TestClient
from supervising import Supervised

from app.db import write_session
from app.jobs import service
from app.jobs.spec import JobSpec
from app.jobs.states import JobStatus, Stage

SCRIPT = """
    from worker.stages import Outcome

    names = {
        "train": ["adapter/a"],
        "merge": ["merged/m", "merged/config.json"],
        "convert": ["gguf/x-q8_0.gguf", "gguf/x-f16.gguf"],
        "verify": ["gguf/Modelfile"],
    }
    for number, name in enumerate(names.get(stage, [])):
        (out / str(number)).write_text(f"{stage} {attempt} {number}")
        kind = {"train": "adapter", "merge": "merged"}.get(stage, "gguf")
        files.append(OutputFile.of(out, out / str(number), name=name, kind=kind))
    if stage == "verify":
        right = {"kl": 0.01, "passed": True, "problems": []}
        values["verification"] = dict.fromkeys(["merged/m", "gguf/x-q8_0.gguf", "gguf/x-f16.gguf"], right)
        wrong = inputs.models_dir / "wrong"
        if wrong.exists():
            found = {"kl": 9.0, "passed": False, "problems": ["far off"]}
            values["verification"][wrong.read_text()] = found
            message = f"{wrong.read_text()} is kept aside: far off."
            report("warning", code="verification_failed", message=message, artifact=wrong.read_text(), verification=found)
            raise StageFailure(FailureCode.VERIFICATION_FAILED, "It is not.", outcome=Outcome(values, files))
"""
EXPORTS = [{"kind": "adapter"}, {"kind": "merged"}, {"kind": "gguf"}]


def fail_with(supervised: Supervised, wrong: str) -> str:
    """A job one file of which is found not to be right."""
    supervised.script(SCRIPT)
    (supervised.scripts / "wrong").write_text(wrong)
    job_id = supervised.submit(exports=EXPORTS, base_model="smollm2-135m-instruct")
    supervised.work()
    assert (supervised.job(job_id).error or {})["code"] == "verification_failed"
    return job_id


def list_artifacts(client: TestClient, job_id: str) -> dict[str, dict[str, Any]]:
    """Those that stages made, by name."""
    listed = client.get(f"/v1/jobs/{job_id}/artifacts").json()["data"]
    return {entry["name"]: entry for entry in listed if entry["kind"] not in ("manifest", "receipt")}


def test_what_is_not_right_is_kept_aside_and_the_rest_is_offered(supervised: Supervised, client: TestClient) -> None:
    job_id = fail_with(supervised, "gguf/x-q8_0.gguf")
    listed = list_artifacts(client, job_id)
    assert set(listed) == {"adapter/a", "merged/m", "merged/config.json", "gguf/x-f16.gguf", "gguf/Modelfile"}
    assert listed["gguf/x-f16.gguf"]["verification"]["passed"]
    assert client.get(listed["gguf/x-f16.gguf"]["url"]).text == "convert 1 1"
    answer = client.get(f"/v1/jobs/{job_id}/artifacts/gguf/x-q8_0.gguf")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "artifact_not_verified")
    assert "is kept aside: far off." in answer.json()["error"]["message"]
    report = client.get(f"/v1/jobs/{job_id}/report", headers={"accept": "application/json"}).json()
    found = {item["name"]: (item["offered"], item["kl"]) for item in report["outcomes"]["verified"]}
    assert found == {"merged/m": (True, 0.01), "gguf/x-f16.gguf": (True, 0.01), "gguf/x-q8_0.gguf": (False, 9.0)}
    events = client.get(f"/v1/jobs/{job_id}/events?limit=100").json()["data"]
    [event] = [event for event in events if event["type"] == "job.warning"]
    assert event["data"]["verification"]["kl"] == 9.0
    assert events[-1]["type"] == "job.failed"
    assert (supervised.storage.attempt_folder(job_id, "convert", 1) / "out" / "0").read_text() == "convert 1 0"


def test_of_a_merged_model_that_is_not_right_no_file_is_offered(supervised: Supervised, client: TestClient) -> None:
    job_id = fail_with(supervised, "merged/m")
    assert set(list_artifacts(client, job_id)) == {"adapter/a", "gguf/x-q8_0.gguf", "gguf/x-f16.gguf", "gguf/Modelfile"}


def test_it_is_made_again_and_offered_with_what_was_found(supervised: Supervised, client: TestClient) -> None:
    job_id = fail_with(supervised, "gguf/x-q8_0.gguf")
    (supervised.scripts / "wrong").unlink()
    with write_session(supervised.engine) as session:
        job, _ = service.retry(session, job_id, JobSpec.model_validate(supervised.job(job_id).spec), {})
    assert set(list_artifacts(client, job_id)) == {"adapter/a"}
    supervised.work()
    assert (job.stage, supervised.job(job_id).status) == (Stage.MERGE, JobStatus.SUCCEEDED)
    listed = list_artifacts(client, job_id)
    assert len(listed) == 6
    assert listed["gguf/x-q8_0.gguf"]["verification"]["passed"]
    assert client.get(listed["gguf/x-q8_0.gguf"]["url"]).text == "convert 2 0"
    assert client.get(listed["gguf/Modelfile"]["url"]).text == "verify 2 0"


def test_a_merged_model_without_a_gguf_is_not_held(supervised: Supervised, client: TestClient) -> None:
    supervised.script(SCRIPT)
    job_id = supervised.submit(exports=EXPORTS[:2], base_model="smollm2-135m-instruct")
    supervised.work()
    assert set(list_artifacts(client, job_id)) == {"adapter/a", "merged/m", "merged/config.json"}
