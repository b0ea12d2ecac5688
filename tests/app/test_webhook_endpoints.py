"""Webhook endpoints and their deliveries through the API."""

import json
import logging
from datetime import timedelta

import pytest
from openai import OpenAI
from receiver import LOOPBACK, Receiver, answer_with
from sqlmodel import select
from standardwebhooks import Webhook

from app.db import read_session, write_session
from app.jobs import repository as jobs
from app.jobs.states import JobStatus
from app.models import WebhookDelivery, WebhookEndpoint, now
from app.secrets.encryption import open_keys
from app.settings import Settings
from app.storage import Storage
from app.sweep import DELIVERIES_KEPT_DAYS, sweep_deliveries
from app.webhooks import service
from app.webhooks.events import WebhookEvent
from worker.notifier import notify
from worker.runner import Runner

URL = "https://hooks.example.com/tunesmith?to=me"
ENDPOINTS = "/v1/webhook_endpoints"


@pytest.fixture
def receiver():
    with Receiver() as receiver:
        yield receiver


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, settings):
    monkeypatch.setenv("TUNESMITH_BROKER_URL", "memory://")
    monkeypatch.setenv("TUNESMITH_WEBHOOK_ALLOW_CIDRS", f"{LOOPBACK}, fd00::/8")
    monkeypatch.setattr("app.webhooks.schedule.PAUSES_SECONDS", (3600,))  # what failed is not due again while a test lasts
    settings.webhook_allow_cidrs = Settings().webhook_allow_cidrs


@pytest.fixture
def create(client):
    def create(url=URL, **fields):
        answer = client.post(ENDPOINTS, json={"url": url} | fields)
        assert answer.status_code == 200, answer.text
        return answer.json()

    return create


@pytest.fixture
def send(engine, settings):
    """Sends what is due."""
    return lambda: notify(Runner(engine, settings, Storage(settings.root), "wrk_test"))


@pytest.fixture
def tell(submit, end_job, send):
    """A job that is cancelled, and what is due sent. Its id."""

    def tell():
        job_id = submit()["id"]
        end_job(job_id, JobStatus.CANCELLED)
        send()
        return job_id

    return tell


def refusal(answer):
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


def test_an_endpoint_is_made_shown_changed_and_deleted(client, create):
    before = int(now().timestamp())
    made = create(name="ci", event_types=["tunesmith.job.started"])
    secret = made.pop("signing_secret")
    assert secret.startswith("whsec_")
    assert made["signing_secret_hint"] == f"whsec_…{secret[-4:]}"
    assert (made["object"], made["name"], made["url"], made["enabled"]) == ("webhook_endpoint", "ci", URL, True)
    assert before <= made["created_at"] <= now().timestamp()
    other = create()
    assert (other["name"], len(other["event_types"])) == ("hooks.example.com", 3)
    page = client.get(ENDPOINTS, params={"limit": 1}).json()
    assert (page["has_more"], page["data"][0]["id"], "signing_secret" in page["data"][0]) == (True, other["id"], False)
    assert client.get(ENDPOINTS, params={"after": page["last_id"]}).json()["data"] == [made]
    assert client.get(f"{ENDPOINTS}/{made['id']}").json() == made
    for change in (client.post, client.patch):
        assert change(f"{ENDPOINTS}/{made['id']}", json={"name": change.__name__}).json()["name"] == change.__name__
    assert client.get(f"{ENDPOINTS}/{made['id']}").json()["event_types"] == ["tunesmith.job.started"]
    deleted = client.delete(f"{ENDPOINTS}/{made['id']}").json()
    assert deleted == {"id": made["id"], "object": "webhook_endpoint.deleted", "deleted": True}
    assert refusal(client.get(f"{ENDPOINTS}/{made['id']}")) == (404, "webhook_endpoint_not_found", "endpoint_id")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "url"),
        ({"url": "https://10.0.0.1/"}, "url"),
        ({"url": "http://8.8.8.8/"}, "url"),
        ({"url": URL, "event_types": []}, "event_types"),
        ({"url": URL, "event_types": ["job.succeeded"]}, "event_types[0]"),
        ({"url": URL, "name": "a\nb"}, "name"),
        ({"url": URL, "signing_secret": "mine"}, "signing_secret"),
    ],
)
def test_what_cannot_be_is_refused_with_400(client, create, body, param):
    assert refusal(client.post(ENDPOINTS, json=body)) == (400, "invalid_spec", param)
    endpoint = create()
    if body:
        assert refusal(client.patch(f"{ENDPOINTS}/{endpoint['id']}", json=body)) == (400, "invalid_spec", param)
    assert len(client.get(ENDPOINTS).json()["data"]) == 1


def test_there_is_a_limit_to_endpoints(client, create, monkeypatch):
    monkeypatch.setattr(service, "MAX_ENDPOINTS", 1)
    create()
    assert refusal(client.post(ENDPOINTS, json={"url": URL})) == (409, "too_many_endpoints", None)


def test_a_signing_secret_is_encrypted_shown_once_and_never_logged(client, create, engine, settings, caplog, receiver, tell):
    caplog.set_level(logging.DEBUG)
    endpoint = create(receiver.url())
    rotated = client.post(
        f"{ENDPOINTS}/{endpoint['id']}/rotate_secret", json={"keep_old_secret_active_for_24_hours": True}
    ).json()
    tell()
    with engine.connect() as connection:
        dump = "\n".join(connection.connection.driver_connection.iterdump())
    shown = "".join(client.get(path).text for path in (ENDPOINTS, f"{ENDPOINTS}/{endpoint['id']}", "/v1/webhook_deliveries"))
    for secret in (endpoint["signing_secret"], rotated["signing_secret"]):
        assert secret.removeprefix("whsec_") not in dump + shown + caplog.text
    with read_session(engine) as session:
        rows = session.exec(select(WebhookEndpoint)).all()
    assert open_keys(settings).decrypt(rows[0].encrypted_secret).decode() == rotated["signing_secret"]
    assert rows[0].encrypted_secret not in repr(rows)
    service.renew(engine, settings)
    with read_session(engine) as session:
        renewed = session.exec(select(WebhookEndpoint)).one()
    assert renewed.encrypted_secret != rows[0].encrypted_secret
    assert open_keys(settings).decrypt(renewed.old_encrypted_secret).decode() == endpoint["signing_secret"]


def verifies(secret, got):
    try:
        Webhook(secret).verify(got.body, got.headers)
    except Exception:
        return False
    return True


def test_after_a_rotation_both_secrets_verify_for_a_day_if_asked(client, create, engine, receiver, tell):
    old = create(receiver.url())
    rotate = f"{ENDPOINTS}/{old['id']}/rotate_secret"
    new = client.post(rotate, json={"keep_old_secret_active_for_24_hours": True}).json()
    assert new["signing_secret"] != old["signing_secret"]
    tell()
    assert [verifies(one["signing_secret"], receiver.received[0]) for one in (old, new)] == [True, True]
    with write_session(engine) as session:
        row = session.exec(select(WebhookEndpoint)).one()
        assert 23.9 < (row.old_secret_until - now()).total_seconds() / 3600 <= 24
        row.old_secret_until = now()
        session.add(row)
    tell()
    assert [verifies(one["signing_secret"], receiver.received[1]) for one in (old, new)] == [False, True]
    newest = client.post(rotate).json()
    tell()
    assert [verifies(one["signing_secret"], receiver.received[2]) for one in (new, newest)] == [False, True]


def test_openai_s_sdk_works_the_endpoints_and_unwraps_what_they_get(client, receiver, tell):
    sdk = OpenAI(api_key="x", base_url="http://127.0.0.1:8000/v1", http_client=client)
    made = sdk.webhooks.create(name="sdk", url=receiver.url(), event_types=["fine_tuning.job.cancelled"])
    assert "tunesmith.job.paused" in sdk.webhooks.event_types.list().data
    result = sdk.webhooks.test(made.id, event_type="fine_tuning.job.succeeded")
    assert (result.success, result.status_code, result.event_type) == (True, 200, "fine_tuning.job.succeeded")
    job_id = tell()
    events = [sdk.webhooks.unwrap(got.body, got.headers, secret=made.signing_secret) for got in receiver.received]
    assert [type(event).__name__ for event in events] == [
        "FineTuningJobSucceededWebhookEvent",
        "FineTuningJobCancelledWebhookEvent",
    ]
    assert (events[1].data.id, events[1].object) == (job_id, "event")
    assert sdk.webhooks.update(made.id, name="other").name == "other"
    assert [endpoint.id for endpoint in sdk.webhooks.list()] == [made.id]
    assert sdk.webhooks.retrieve(made.id).signing_secret_hint == made.signing_secret_hint
    assert sdk.webhooks.rotate_secret(made.id).signing_secret != made.signing_secret
    assert sdk.webhooks.delete(made.id).deleted


def test_a_test_tells_what_the_receiver_answers(client, create, receiver):
    endpoint = create(receiver.url())
    receiver.answer = answer_with("503 Busy")
    assert client.post(f"{ENDPOINTS}/{endpoint['id']}/test").json()["status_code"] == 503
    event = {"event_type": "tunesmith.job.paused"}
    client.post(f"{ENDPOINTS}/{endpoint['id']}/test", json=event)
    body = json.loads(receiver.received[-1].body)
    assert (body["type"], body["data"]["status"]) == ("tunesmith.job.paused", "paused")
    receiver.answer = b"what?"
    assert refusal(client.post(f"{ENDPOINTS}/{endpoint['id']}/test")) == (400, "webhook_test_failed", "url")
    assert client.get("/v1/webhook_deliveries").json()["data"] == []


def test_each_endpoint_that_asks_for_an_event_has_its_delivery_in_the_log(client, create, receiver, tell):
    wanting, silent = create(receiver.url(path="/a")), create(receiver.url(path="/b"), event_types=["tunesmith.job.paused"])
    gone = create(receiver.url(path="/c"))
    client.patch(f"{ENDPOINTS}/{gone['id']}", json={"enabled": False})
    first, second = tell(), tell()
    data = client.get("/v1/webhook_deliveries").json()["data"]
    assert [(one["job_id"], one["endpoint_id"]) for one in data] == [(second, wanting["id"]), (first, wanting["id"])]
    assert (data[0]["status"], data[0]["next_attempt_at"]) == ("delivered", None)
    assert [(attempt["status_code"], attempt["answer"]) for attempt in data[0]["attempts"]] == [(200, "ok")]
    assert data[0]["event_id"] == receiver.received[1].headers["webhook-id"]
    assert data[0]["event_id"] == client.get(f"/v1/jobs/{second}/events").json()["data"][-1]["id"]
    for query, expected in (
        ({"job": first}, [first]),
        ({"endpoint": wanting["id"]}, [second, first]),
        ({"endpoint": silent["id"]}, []),
        ({"limit": 1}, [second]),
        ({"after": data[0]["id"]}, [first]),
    ):
        assert [one["job_id"] for one in client.get("/v1/webhook_deliveries", params=query).json()["data"]] == expected


def test_410_disables_the_endpoint_until_it_is_enabled_again(client, create, receiver, tell, send):
    receiver.answer = answer_with("500 Oops")
    endpoint = create(receiver.url())
    tell()
    receiver.answer = answer_with("410 Gone")
    tell()
    shown = client.get(f"{ENDPOINTS}/{endpoint['id']}").json()
    assert (shown["enabled"], shown["disabled_reason"]) == (False, "The receiver answered 410 Gone.")
    deliveries = client.get("/v1/webhook_deliveries").json()["data"]
    assert [(one["status"], one["next_attempt_at"]) for one in deliveries] == [("failed", None)] * 2
    receiver.answer = answer_with()
    tell()
    assert len(receiver.received) == 2
    again = f"/v1/webhook_deliveries/{deliveries[0]['id']}/redeliver"
    assert refusal(client.post(again)) == (409, "webhook_endpoint_disabled", "delivery_id")
    assert client.patch(f"{ENDPOINTS}/{endpoint['id']}", json={"enabled": True}).json()["disabled_reason"] is None
    assert client.post(again).json()["status"] == "pending"
    send()
    assert receiver.received[2].body == receiver.received[1].body
    assert receiver.received[2].headers["webhook-id"] == receiver.received[1].headers["webhook-id"]
    delivery = client.get("/v1/webhook_deliveries").json()["data"][0]
    assert (delivery["status"], [attempt["status_code"] for attempt in delivery["attempts"]]) == ("delivered", [410, 200])


def test_a_delivery_that_waits_is_sent_at_once_when_asked(client, create, receiver, tell, send):
    receiver.answer = answer_with("500 Oops")
    create(receiver.url())
    tell()
    (delivery,) = client.get("/v1/webhook_deliveries").json()["data"]
    assert delivery["next_attempt_at"] > delivery["created_at"]
    receiver.answer = answer_with()
    assert client.post(f"/v1/webhook_deliveries/{delivery['id']}/redeliver").status_code == 202
    send()
    assert client.get("/v1/webhook_deliveries").json()["data"][0]["status"] == "delivered"
    assert refusal(client.post("/v1/webhook_deliveries/dlv_x/redeliver")) == (404, "webhook_delivery_not_found", "delivery_id")


def test_an_endpoint_takes_its_waiting_deliveries_along(client, create, receiver, tell, send, engine):
    receiver.answer = answer_with("500 Oops")
    endpoint = create(receiver.url())
    job_id = tell()
    client.delete(f"{ENDPOINTS}/{endpoint['id']}")
    assert client.get("/v1/webhook_deliveries").json()["data"] == []
    with write_session(engine) as session:
        assert jobs.get(session, job_id).status is JobStatus.CANCELLED


def test_another_tenant_s_endpoints_are_neither_seen_nor_told(client, create, engine, receiver, tell):
    endpoint = create(receiver.url())
    tell()
    with write_session(engine) as session:
        for row in session.exec(select(WebhookEndpoint)):
            row.tenant_id = "other"
            session.add(row)
    tell()
    assert len(receiver.received) == 1
    assert client.get(ENDPOINTS).json()["data"] == []
    calls = [
        client.get(f"{ENDPOINTS}/{endpoint['id']}"),
        client.patch(f"{ENDPOINTS}/{endpoint['id']}", json={"name": "mine"}),
        client.delete(f"{ENDPOINTS}/{endpoint['id']}"),
        client.post(f"{ENDPOINTS}/{endpoint['id']}/rotate_secret"),
        client.post(f"{ENDPOINTS}/{endpoint['id']}/test"),
    ]
    assert {call.status_code for call in calls} == {404}


def test_every_event_has_a_sample(client, create, receiver):
    endpoint = create(receiver.url())
    for type in WebhookEvent:
        assert client.post(f"{ENDPOINTS}/{endpoint['id']}/test", json={"event_type": type}).status_code == 200
    statuses = [json.loads(got.body)["data"]["status"] for got in receiver.received]
    assert set(statuses) <= set(JobStatus)


def test_the_log_forgets_what_ended_long_ago_and_keeps_what_waits(client, create, receiver, tell, engine):
    create(receiver.url())
    tell()
    receiver.answer = answer_with("500 Oops")
    waiting = tell()
    recent = tell()
    with write_session(engine) as session:
        for delivery in session.exec(select(WebhookDelivery).where(WebhookDelivery.job_id != recent)):
            delivery.created_at = now() - timedelta(days=DELIVERIES_KEPT_DAYS + 1)
            session.add(delivery)
    sweep_deliveries(engine)
    assert [one["job_id"] for one in client.get("/v1/webhook_deliveries").json()["data"]] == [recent, waiting]
