"""A request that names itself is carried out once, however often it is sent, and whatever dies in between."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sample_rows import DATASET

from app.db import write_session
from app.idempotency import forget_old
from app.jobs import service
from app.models import IdempotentRequest, now

SPEC = {"base_model": "smollm2-135m-instruct", "dataset": {"hub": {"repo": "a/b"}}}


@pytest.fixture
def submit_as(client):
    def submit_as(key, **fields):
        return client.post("/v1/jobs", json=SPEC | fields, headers={"Idempotency-Key": key})

    return submit_as


@pytest.fixture
def upload_as(client):
    def upload_as(key, content=DATASET, name="rows.jsonl"):
        form = {"data": {"purpose": "fine-tune"}, "files": {"file": (name, content)}}
        return client.post("/v1/files", **form, headers={"Idempotency-Key": key})

    return upload_as


def count(client, what):
    return len(client.get(f"/v1/{what}").json()["data"])


def test_the_same_request_makes_one_job_and_answers_it_as_it_is_now(client, submit_as):
    first = submit_as("a")
    client.post(f"/v1/jobs/{first.json()['id']}/cancel")
    again = submit_as("a")
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json()["id"] == first.json()["id"] and again.headers["location"] == first.headers["location"]
    assert again.json()["status"] == "cancelled"
    assert submit_as("b").json()["id"] != first.json()["id"]
    assert count(client, "jobs") == 2


def test_the_same_upload_makes_one_file(client, upload_as):
    first = upload_as("a").json()
    assert upload_as("a").json() == first
    assert upload_as("b").json()["id"] != first["id"]
    for changed in (upload_as("a", DATASET + b"\n"), upload_as("a", name="other.jsonl")):
        assert (changed.status_code, changed.json()["error"]["code"]) == (409, "idempotency_conflict")
    assert count(client, "files") == 2


def test_another_body_or_operation_under_the_key_is_a_conflict(client, submit_as, upload_as):
    submit_as("a")
    for answer in (submit_as("a", name="other"), upload_as("a")):
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "idempotency_conflict")
        assert (answer.headers["x-should-retry"], answer.json()["error"]["param"]) == ("false", "Idempotency-Key")
    assert (count(client, "jobs"), count(client, "files")) == (1, 0)


def test_what_was_refused_may_be_sent_again_put_right(client, submit_as):
    assert submit_as("a", base_model="nothing").status_code == 422
    assert submit_as("a").status_code == 201


@pytest.mark.parametrize("key", ["", "x" * 256, "a b"])
def test_a_key_has_a_rule(submit_as, key):
    answer = submit_as(key)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "Idempotency-Key")


def test_of_requests_at_once_one_is_carried_out(client, submit_as, monkeypatch):
    """All have looked before any has made its job."""
    create, together = service.create, threading.Barrier(4, timeout=100)

    def create_together(*arguments):
        together.wait()
        return create(*arguments)

    monkeypatch.setattr(service, "create", create_together)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: submit_as("a"), range(4)))
    refused = [answer for answer in answers if answer.status_code == 409]
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]
    for answer in refused:
        assert (answer.headers["retry-after"], answer.json()["error"]["code"]) == ("1", "idempotency_in_flight")
        assert "x-should-retry" not in answer.headers
    assert count(client, "jobs") == 1


def test_what_a_dying_server_did_not_commit_is_made_anew(client, submit_as, monkeypatch):
    """The row and the job are one transaction: neither is there without the other."""
    with monkeypatch.context() as patch:
        patch.setattr("app.jobs.endpoints.present", None)
        assert submit_as("a").status_code == 500
    assert count(client, "jobs") == 0
    assert submit_as("a").status_code == 201


def test_keys_are_each_tenants_own_and_forgotten_after_a_day(client, submit_as, engine):
    first = submit_as("a").json()["id"]
    with write_session(engine) as session:
        row = session.get_one(IdempotentRequest, ("default", "a"))
        session.add(IdempotentRequest(**row.model_dump() | {"tenant_id": "other", "created_at": now() - timedelta(hours=23)}))
    forget_old(engine)
    assert submit_as("a").json()["id"] == first
    with write_session(engine) as session:
        session.get_one(IdempotentRequest, ("other", "a"))
        session.get_one(IdempotentRequest, ("default", "a")).created_at = now() - timedelta(hours=25)
    forget_old(engine)
    assert submit_as("a").json()["id"] != first
