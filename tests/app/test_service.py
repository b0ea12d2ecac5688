"""What holds for every address: the error shape, request ids, who may call, health."""

import logging
import subprocess
import sys

import pytest
from starlette.testclient import TestClient

from app.db import write_session
from app.jobs import repository as jobs
from app.jobs import stage_runs
from app.jobs.states import JobStatus, Stage
from app.main import create_app
from app.models import Worker, now
from app.settings import Settings


def test_every_answer_has_a_request_id_of_its_own(client):
    answers = [client.get("/healthz"), client.get("/nothing"), client.post("/v1/jobs", json={}), client.get("/v1/jobs")]
    assert len({answer.headers["x-request-id"] for answer in answers}) == 4


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "é".encode(), b"a\x00b", "<x>"])
def test_a_request_id_that_is_none_is_replaced(client, given):
    answer = client.get("/healthz", headers={"x-request-id": given})
    assert answer.headers["x-request-id"].startswith("req_")


def test_a_request_id_goes_with_the_work(client, engine, submit, take_up, caplog):
    caplog.set_level(logging.INFO, logger="app")
    client.headers["x-request-id"] = "from-the-client:1"
    job_id = submit()["id"]
    run = take_up(job_id)
    assert run.request_id == "from-the-client:1"
    assert "from-the-client:1: POST /v1/jobs 201" in caplog.text
    answer = client.post(f"/v1/jobs/{job_id}/cancel", headers={"x-request-id": "second"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (202, "second")
    events = client.get(f"/v1/jobs/{job_id}/events").json()["data"]
    assert [event["data"].get("request_id") for event in events] == ["from-the-client:1", None]
    with write_session(engine) as session:
        job = jobs.get(session, job_id)
        assert stage_runs.enqueue(session, job=job, stage=Stage.TRAIN).request_id == job.request_id == "from-the-client:1"


def test_the_signature_of_a_link_is_not_logged(client, caplog):
    caplog.set_level(logging.INFO, logger="app")
    client.get("/v1/links/1.SIGNATURE/job_1/a%0Ab.gguf")
    assert "/v1/links/…/job_1/" in caplog.text or "/v1/links/\\u2026/job_1/" in caplog.text
    assert "SIGNATURE" not in caplog.text and "\nb.gguf" not in caplog.text


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("PUT", "/v1/jobs", 405, "method_not_allowed"),
        ("GET", "/v1/jobs/x/y", 404, "not_found"),
    ],
)
def test_what_is_not_there_is_said_in_the_error_shape(client, method, path, status, code):
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    assert answer.json()["error"]["code"] == code


def test_a_failure_of_the_service_tells_nothing_but_where_to_look(client, monkeypatch, caplog):
    monkeypatch.setattr(client.app.state, "engine", None)
    with caplog.at_level(logging.ERROR):
        answer = client.get("/v1/jobs")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
    assert "NoneType" not in answer.text
    assert answer.headers["x-request-id"] in answer.json()["error"]["message"]
    assert answer.headers["x-request-id"] in caplog.text


@pytest.mark.parametrize(
    ("body", "status"), [(b"{", 400), (b"\xff", 400), (b"[" * 100_000, 400), (b"NaN", 422), (b"", 422), (b"[]", 422)]
)
def test_a_body_that_is_no_json_object_is_refused(client, body, status):
    answer = client.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


def test_json_under_another_content_type_is_not_taken(client):
    answer = client.post("/v1/jobs", content=b'{"base_model": "x"}', headers={"content-type": "text/plain"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "body")


def pieces(count):
    for _ in range(count):
        yield b'"' + b"x" * 65536


@pytest.mark.parametrize("body", [b"x" * (2 << 20), pieces(32)], ids=["announced", "in pieces"])
def test_a_body_above_a_megabyte_is_refused(client, body):
    answer = client.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    assert "x-request-id" in answer.headers


LOCAL = ["127.0.0.1:8000", "localhost", "localhost:9", "[::1]:8000", "LOCALHOST"]


@pytest.mark.parametrize("host", LOCAL)
def test_without_a_key_every_loopback_name_is_served(client, host):
    assert client.get("/v1/jobs", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1:8000", "localhost.evil.example", "", "user@evil.example"]
)
@pytest.mark.parametrize("path", ["/v1/jobs", "/healthz", "/openapi.json"])
def test_without_a_key_no_other_name_is(client, host, path):
    answer = client.get(path, headers={"host": host})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")
    assert "x-request-id" in answer.headers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 422),
        ({"origin": "http://127.0.0.1:8000"}, 422),
        ({"sec-fetch-site": "same-origin"}, 422),
        ({"sec-fetch-site": "none"}, 422),
        ({"authorization": "Bearer whatever"}, 422),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:3000"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"origin": "http://127.0.0.1:8000", "sec-fetch-site": "cross-site"}, 403),
    ],
)
def test_without_a_key_only_the_servers_own_pages_may_change_anything(client, headers, status):
    assert client.post("/v1/jobs", json={}, headers=headers).status_code == status


def test_reading_from_another_origin_is_not_refused_but_not_shared_either(client):
    answer = client.get("/v1/jobs", headers={"origin": "http://evil.example", "sec-fetch-site": "cross-site"})
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers


@pytest.fixture
def keyed(settings, monkeypatch):
    monkeypatch.setenv("TUNESMITH_BOOTSTRAP_KEY", "tsk_secret")
    with TestClient(create_app(Settings()), base_url="https://tune.example") as client:
        yield client


@pytest.mark.parametrize(
    "given", [None, "Bearer tsk_wrong", "Bearer ", "tsk_secret", "Basic tsk_secret", "Bearer tsk_secret2", "Bearer \xff"]
)
def test_with_a_key_v1_needs_it(keyed, given):
    answer = keyed.get("/v1/jobs", headers={"authorization": given.encode("latin-1")} if given else {})
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_with_the_key_any_host_is_served(keyed):
    assert keyed.get("/v1/jobs", headers={"authorization": "Bearer tsk_secret"}).json()["data"] == []
    assert keyed.get("/healthz").status_code == 200


def test_the_key_is_shown_nowhere(keyed):
    assert "tsk_secret" not in repr(Settings())


def test_without_a_key_the_server_refuses_to_listen_elsewhere(environment):
    done = subprocess.run([sys.executable, "-m", "app.main", "--host", "0.0.0.0"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "TUNESMITH_BOOTSTRAP_KEY" in done.stderr


def test_a_wrong_flag_is_explained(environment):
    done = subprocess.run([sys.executable, "-m", "app.main", "--port", "many"], capture_output=True, text=True)
    assert (done.returncode, "port:" in done.stderr) == (2, True)


def test_the_http_ring_is_light():
    heavy = "torch transformers trl peft bitsandbytes datasets accelerate numpy pyarrow worker client"
    code = f"import app.main, sys; print([name for name in '{heavy}'.split() if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_readiness_names_what_is_down(client):
    answer = client.get("/readyz")
    checks = answer.json()["checks"]
    assert answer.status_code == 503
    assert {name: check["status"] for name, check in checks.items()} == {
        "database": "up",
        "broker": "down",
        "storage": "up",
        "workers": "down",
    }
    assert "gpu, cpu" in checks["workers"]["reason"]
    assert answer.json()["error"]["code"] == "unavailable"


@pytest.fixture
def workers(engine):
    device = {"name": "Tesla T4", "total_bytes": 15828320256, "capability": "7.5"}
    with write_session(engine) as session:
        session.add(Worker(id="wrk_gpu", host="a", pid=1, queues=["gpu"], device=device, versions={"torch": "2.11"}))
        session.add(Worker(id="wrk_cpu", host="a", pid=2, queues=["cpu"]))
        session.add(Worker(id="wrk_dead", host="b", pid=3, queues=["cpu"], heartbeat_at=now().replace(year=2020)))


def test_live_workers_make_the_workers_check_pass(client, workers):
    assert client.get("/readyz").json()["checks"]["workers"] == {"status": "up", "gpu": 1, "cpu": 1}


def test_workers_show_who_they_are_and_what_they_do(client, engine, workers, submit, take_up):
    run = take_up(submit()["id"])
    with write_session(engine) as session:
        session.get_one(Worker, "wrk_cpu").stage_run_id = run.id
    found = {worker["id"]: worker for worker in client.get("/v1/workers").json()["data"]}
    assert found["wrk_gpu"]["device"]["name"] == "Tesla T4"
    assert found["wrk_cpu"]["stage"] | {"started_at": None} == {
        "name": "prepare",
        "attempt": 1,
        "job_id": run.job_id,
        "file_id": None,
        "started_at": None,
    }
    assert found["wrk_dead"]["alive"] is False


def test_the_queue_counts_what_waits_and_runs(client, workers, submit, take_up, end_job):
    first = submit()["id"]
    take_up(first)
    submit()
    gpu, cpu = client.get("/v1/queue").json()["data"]
    assert (gpu["resource"], gpu["queued"], gpu["running"], gpu["workers"]) == ("gpu", 0, 0, 1)
    assert (cpu["resource"], cpu["queued"], cpu["running"], cpu["workers"]) == ("cpu", 2, 2, 1)
    end_job(first, JobStatus.SUCCEEDED)
