"""What a tenant may have and ask for: jobs, bytes, requests."""

import pytest
from pydantic import SecretStr
from sample_rows import DATASET

from app.jobs.states import JobStatus
from app.keys.keyring import Keyring
from app.rate_limits import PER_MINUTE, Limiter

SPEC = {"base_model": "smollm2-135m-instruct", "dataset": {"hub": {"repo": "a/b"}}}
BOOTSTRAP = "tsk_of_the_first_administrator"


@pytest.fixture
def other(client, engine):
    """Headers of another tenant, on what is now a server with keys."""
    client.app.state.keyring = Keyring(engine, SecretStr(BOOTSTRAP))
    client.headers["authorization"] = f"Bearer {BOOTSTRAP}"
    key = client.post("/v1/keys", json={"tenant": "other"}).json()["key"]
    return {"authorization": f"Bearer {key}"}


def is_over(answer):
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "quota_exceeded"), answer.text
    return answer.headers["x-should-retry"] == "false"


def test_jobs_that_have_not_ended_are_counted_by_tenant(client, settings, end_job, other):
    settings.max_open_jobs = 2
    first, second = (client.post("/v1/jobs", json=SPEC).json()["id"] for _ in range(2))
    client.post(f"/v1/jobs/{second}/pause")
    assert is_over(client.post("/v1/jobs", json=SPEC))
    assert client.post("/v1/jobs", json=SPEC, headers=other).status_code == 201
    end_job(first, JobStatus.CANCELLED)
    assert client.post("/v1/jobs", json=SPEC).status_code == 201
    assert is_over(client.post(f"/v1/jobs/{first}/retry"))
    assert client.post(f"/v1/jobs/{second}/resume").status_code == 202


def test_files_and_artifacts_are_weighed_by_tenant(client, settings, upload, make_artifact, storage, other):
    settings.max_stored_bytes = 4 * len(DATASET)
    file_id = upload()["id"]
    job = client.post("/v1/jobs", json=SPEC | {"dataset": {"file": file_id}}).json()["id"]
    make_artifact(job, "gguf/m.gguf", b"x" * len(DATASET) * 2)
    form = {"data": {"purpose": "fine-tune"}, "files": {"file": ("rows.jsonl", DATASET + DATASET)}}
    assert is_over(client.post("/v1/files", **form))
    assert list(storage.uploads()) == []
    make_artifact(job, "gguf/n.gguf", b"y" * len(DATASET))
    assert is_over(client.post("/v1/jobs", json=SPEC))
    assert client.post("/v1/files", **form, headers=other).status_code == 200
    client.delete(f"/v1/jobs/{job}")
    assert client.post("/v1/jobs", json=SPEC).status_code == 201


def test_requests_are_counted_by_tenant_and_headers_tell_how_many_are_left(client, settings, other):
    settings.requests_per_minute = 5
    client.app.state.limiter = Limiter(settings)
    answers = [client.get("/v1/jobs") for _ in range(6)]
    if {answer.status_code for answer in answers} == {200}:  # a minute ended in between
        answers = [client.get("/v1/jobs") for _ in range(6)]
    assert answers[-1].json()["error"]["code"] == "rate_limited"
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
    assert answers[-1].headers["x-ratelimit-reset-requests"] == answers[-1].headers["retry-after"] + "s"
    assert answers[-1].headers["x-ratelimit-remaining-requests"] == "0"
    assert "x-request-id" in answers[-1].headers
    assert client.get("/v1/jobs", headers=other).headers["x-ratelimit-remaining-requests"] == "4"
    assert client.get("/healthz").status_code == 200


def test_by_default_only_a_server_with_keys_counts(client, request):
    assert "x-ratelimit-limit-requests" not in client.get("/v1/jobs").headers
    other = request.getfixturevalue("other")
    assert client.get("/v1/jobs", headers=other).headers["x-ratelimit-limit-requests"] == str(PER_MINUTE)
