"""Every operation of the published schema against every kind of caller who may not do it.

A new operation needs a line in `RULES`, and a sample in `samples` where its path has a parameter of a new name.
"""

import re

import pytest
from pydantic import SecretStr

from app.jobs.states import JobStatus
from app.keys.keyring import Keyring
from app.keys.scopes import OPEN_PATHS

OPERATOR = "tsk_of_the_operator"

OPEN, SIGNED, OWNED, OWN, ADMINS = "open", "signed", "owned", "own", "admins"
"""No key is asked for; a signature is, and without it 403; another tenant's is 404; each tenant gets or makes its own; as
`own`, with the scope `admin`."""

RULES = {
    "GET /healthz": OPEN,
    "GET /readyz": OPEN,
    "GET /v1/jobs": OWN,
    "POST /v1/jobs": OWN,
    "POST /v1/jobs/estimate": OWN,
    "GET /v1/jobs/{job_id}": OWNED,
    "DELETE /v1/jobs/{job_id}": OWNED,
    "POST /v1/jobs/{job_id}/cancel": OWNED,
    "POST /v1/jobs/{job_id}/pause": OWNED,
    "POST /v1/jobs/{job_id}/resume": OWNED,
    "POST /v1/jobs/{job_id}/retry": OWNED,
    "GET /v1/jobs/{job_id}/events": OWNED,
    "GET /v1/jobs/{job_id}/metrics": OWNED,
    "GET /v1/jobs/{job_id}/logs": OWNED,
    "GET /v1/jobs/{job_id}/checkpoints": OWNED,
    "GET /v1/jobs/{job_id}/attempts": OWNED,
    "GET /v1/jobs/{job_id}/report": OWNED,
    "GET /v1/jobs/{job_id}/artifacts": OWNED,
    "GET /v1/jobs/{job_id}/artifacts.tar": OWNED,
    "GET /v1/jobs/{job_id}/artifacts/{name}": OWNED,
    "POST /v1/jobs/{job_id}/artifacts/{name}/link": OWNED,
    "GET /v1/links/{token}/{job_id}/{name}": SIGNED,
    "GET /v1/files": OWN,
    "POST /v1/files": OWN,
    "GET /v1/files/{file_id}": OWNED,
    "DELETE /v1/files/{file_id}": OWNED,
    "GET /v1/files/{file_id}/content": OWNED,
    "GET /v1/files/{file_id}/report": OWNED,
    "GET /v1/files/{file_id}/preview": OWNED,
    "GET /v1/fine_tuning/jobs": OWN,
    "POST /v1/fine_tuning/jobs": OWN,
    "GET /v1/fine_tuning/jobs/{job_id}": OWNED,
    "POST /v1/fine_tuning/jobs/{job_id}/cancel": OWNED,
    "POST /v1/fine_tuning/jobs/{job_id}/pause": OWNED,
    "POST /v1/fine_tuning/jobs/{job_id}/resume": OWNED,
    "GET /v1/fine_tuning/jobs/{job_id}/events": OWNED,
    "GET /v1/fine_tuning/jobs/{job_id}/checkpoints": OWNED,
    "GET /v1/models": OWN,
    "GET /v1/models/{model}": OWNED,
    "DELETE /v1/models/{model}": OWNED,
    "GET /v1/secrets": OWN,
    "PUT /v1/secrets/{name}": OWN,
    "DELETE /v1/secrets/{name}": OWNED,
    "GET /v1/keys": ADMINS,
    "POST /v1/keys": ADMINS,
    "DELETE /v1/keys/{key_id}": ADMINS,
    "GET /v1/webhook_event_types": OWN,
    "GET /v1/webhook_endpoints": OWN,
    "POST /v1/webhook_endpoints": OWN,
    "GET /v1/webhook_endpoints/{endpoint_id}": OWNED,
    "POST /v1/webhook_endpoints/{endpoint_id}": OWNED,
    "PATCH /v1/webhook_endpoints/{endpoint_id}": OWNED,
    "DELETE /v1/webhook_endpoints/{endpoint_id}": OWNED,
    "POST /v1/webhook_endpoints/{endpoint_id}/rotate_secret": OWNED,
    "POST /v1/webhook_endpoints/{endpoint_id}/test": OWNED,
    "GET /v1/webhook_deliveries": OWN,
    "POST /v1/webhook_deliveries/{delivery_id}/redeliver": OWNED,
    "GET /v1/workers": OWN,
    "GET /v1/queue": OWN,
}
BODIES = {
    "POST /v1/jobs": {"base_model": "smollm2-135m-instruct", "dataset": {"hub": {"repo": "a/b"}}},
    "PUT /v1/secrets/{name}": {"value": "x"},
    "POST /v1/fine_tuning/jobs": {"model": "smollm2-135m-instruct", "dataset": {"hub": {"repo": "a/b"}}},
    "POST /v1/keys": {},
    "POST /v1/webhook_endpoints": {"url": "https://hooks.example.com/"},
    "POST /v1/webhook_endpoints/{endpoint_id}": {"name": "x"},
    "PATCH /v1/webhook_endpoints/{endpoint_id}": {"name": "x"},
}
QUERIES = {"GET /v1/files/{file_id}/preview": {"base_model": "smollm2-135m-instruct"}}
READING = ("GET ", "POST /v1/jobs/{job_id}/artifacts/{name}/link")


@pytest.fixture
def keyed(client, engine):
    client.app.state.keyring = Keyring(engine, SecretStr(OPERATOR))
    client.headers["authorization"] = f"Bearer {OPERATOR}"
    return client


@pytest.fixture
def samples(keyed, submit, take_up, end_job, make_artifact):
    """What the operator's tenant owns, by the names of path parameters."""
    job = submit(name="the owner's")
    make_artifact(job["id"], "gguf/owned.gguf", b"GGUF")
    made = submit(name="the owner's model")["id"]
    take_up(made)
    make_artifact(made, "gguf/made.gguf", b"GGUF")
    end_job(made, JobStatus.SUCCEEDED)
    keyed.put("/v1/secrets/owned", json={"value": "x"})
    key = keyed.post("/v1/keys", json={"name": "the owner's"}).json()
    endpoint = keyed.post("/v1/webhook_endpoints", json={"url": "https://localhost:1024/the-owner's"}).json()
    keyed.post(f"/v1/jobs/{submit()['id']}/cancel")
    return {
        "endpoint_id": endpoint["id"],
        "delivery_id": keyed.get("/v1/webhook_deliveries").json()["data"][0]["id"],
        "job_id": job["id"],
        "file_id": job["spec"]["dataset"]["file"],
        "artifact": "gguf/owned.gguf",
        "secret": "owned",
        "token": "1999999999." + "x" * 43,
        "key_id": key["id"],
        "model": keyed.get("/v1/models").json()["last_id"],
    }


@pytest.fixture
def call(keyed, samples):
    def call(operation, key=None):
        method, template = operation.split(" ")
        values = samples | {"name": samples["secret" if "/secrets/" in template else "artifact"]}
        path = re.sub(r"\{(\w+)\}", lambda found: values[found[1]], template)
        headers = {"authorization": f"Bearer {key}"} if key else {"authorization": ""}
        return keyed.request(method, path, params=QUERIES.get(operation), json=BODIES.get(operation), headers=headers)

    return call


@pytest.fixture
def make_key(keyed):
    def make_key(**wanted):
        return keyed.post("/v1/keys", json=wanted, headers={"authorization": f"Bearer {OPERATOR}"}).json()

    return make_key


def test_every_operation_has_a_rule(client):
    paths = client.app.openapi()["paths"]
    assert {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods} == RULES.keys()
    assert {path.split(" ")[1] for path, rule in RULES.items() if rule == OPEN} <= OPEN_PATHS


def test_without_a_valid_key_nothing_but_the_open_paths_answers(keyed, call, make_key):
    revoked = make_key(scopes=["read", "write", "admin"])
    assert call("GET /v1/jobs", revoked["key"]).status_code == 200
    keyed.delete(f"/v1/keys/{revoked['id']}")
    for operation, rule in RULES.items():
        for key in (None, "tsk_wrong", revoked["key"]):
            answer = call(operation, key)
            if rule == OPEN:
                assert answer.status_code not in (401, 403, 404), operation
            else:
                refusal = (403, "forbidden") if rule == SIGNED else (401, "unauthorized")
                assert (answer.status_code, answer.json()["error"]["code"]) == refusal, operation
    assert keyed.get("/v1/nothing", headers={"authorization": ""}).status_code == 401


def test_a_key_that_may_only_read_changes_nothing(call, make_key):
    reader = make_key(scopes=["read"])["key"]
    for operation, rule in RULES.items():
        refused = rule in (ADMINS, SIGNED) or not operation.startswith(READING)
        assert (call(operation, reader).status_code == 403) == refused, operation


def test_another_tenant_finds_nothing_of_the_owners(call, make_key, samples):
    other = make_key(scopes=["read", "write", "admin"], tenant="other")["key"]
    names = ("job_id", "file_id", "key_id", "artifact", "model", "endpoint_id", "delivery_id")
    traces = [*(samples[name] for name in names), "the owner's", "the-owner's"]
    for operation, rule in RULES.items():
        if operation == "DELETE /v1/secrets/{name}":
            continue
        answer = call(operation, other)
        owned = rule == OWNED or "{key_id}" in operation
        assert (answer.status_code == 404) == owned, (operation, answer.text)
        if not owned:
            assert not [trace for trace in traces if trace in answer.text], operation
            assert (answer.status_code == 403) == (rule == SIGNED), operation
    assert call("DELETE /v1/secrets/{name}", other).status_code == 200
    assert call("DELETE /v1/secrets/{name}", other).status_code == 404


def test_the_owner_is_never_refused(call):
    for operation in sorted(RULES, key=lambda operation: (operation.startswith("DELETE"), "file" in operation)):
        assert RULES[operation] == SIGNED or call(operation, OPERATOR).status_code not in (401, 403, 404), operation
