"""From a job's transition to the receiver: what is sent, when, how often, and what is written down about it."""

import json
import time
from datetime import timedelta
from functools import partial
from threading import Thread

import pytest
from receiver import LOOPBACK, Receiver, answer_with
from sqlmodel import select
from standardwebhooks import Webhook
from supervising import PATIENCE_SECONDS, wait_until

from app.db import read_session, write_session
from app.jobs import repository as jobs
from app.jobs.states import JobStatus
from app.models import Artifact, Blob, WebhookDelivery, now
from app.secrets import service as secrets
from app.tenancy import DEFAULT_TENANT
from app.webhooks.sender import send
from app.webhooks.signing import make_secret
from worker.notifier import notify

KEY = make_secret()
EVERY_EVENT = [
    *(f"fine_tuning.job.{end}" for end in ("succeeded", "failed", "cancelled")),
    *(f"tunesmith.job.{step}" for step in ("started", "paused", "resumed")),
]


@pytest.fixture
def receiver():
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def allowed(monkeypatch):
    monkeypatch.setenv("TUNESMITH_WEBHOOK_ALLOW_CIDRS", LOOPBACK)
    monkeypatch.setenv("TUNESMITH_PUBLIC_URL", "https://tunes.example/")


@pytest.fixture
def submit(allowed, supervised):
    """A job that tells `url` of its events."""
    supervised.runner.settings.webhook_allow_cidrs = type(supervised.settings)().webhook_allow_cidrs
    with write_session(supervised.engine, DEFAULT_TENANT) as session:
        secrets.put(session, supervised.settings, "hook", KEY)

    def submit(url, **fields):
        return supervised.submit(webhook={"url": url, "secret": "secret:hook"} | fields)

    return submit


def move(supervised, job_id, *statuses):
    for status in statuses:
        with write_session(supervised.engine) as session:
            jobs.set_status(session, jobs.get(session, job_id), status, "moved")


def deliveries(supervised):
    with read_session(supervised.engine) as session:
        return list(session.exec(select(WebhookDelivery).order_by(WebhookDelivery.id)))


def make_due(supervised):
    with write_session(supervised.engine) as session:
        for delivery in session.exec(select(WebhookDelivery).where(WebhookDelivery.status == "pending")):
            delivery.due_at = now()
            session.add(delivery)


def test_every_transition_tells_what_was_asked_for_in_order(submit, supervised, receiver):
    quiet = submit(receiver.url(path="/quiet"))
    job_id = submit(receiver.url(), event_types=EVERY_EVENT)
    steps = (JobStatus.RUNNING, JobStatus.PAUSED, JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.FAILED, JobStatus.QUEUED)
    for status in (*steps, JobStatus.CANCELLED):
        move(supervised, job_id, status)
        notify(supervised.runner)
    move(supervised, quiet, JobStatus.RUNNING, JobStatus.PAUSED)
    notify(supervised.runner)
    bodies = [json.loads(got.body) for got in receiver.received]
    names = ["started", "paused", "resumed", "started", "failed", "cancelled"]
    assert [body["type"].rpartition(".")[2] for body in bodies] == names
    events = {event.id: event for event in supervised.events(job_id)}
    for got, body in zip(receiver.received, bodies, strict=True):
        assert Webhook(KEY).verify(got.body, got.headers) == body
        assert got.headers["webhook-id"] == body["id"]
        assert body["created_at"] == int(events[body["id"]].created_at.timestamp())
        assert body["data"].keys() == {"id", "status", "artifacts"}
    assert bodies[4]["data"] == {"id": job_id, "status": "failed", "artifacts": []}
    assert {delivery.status for delivery in deliveries(supervised)} == {"delivered"}


def test_the_body_names_the_artifacts_by_their_public_urls(submit, supervised, receiver):
    job_id = submit(receiver.url())
    with write_session(supervised.engine) as session:
        session.add(Blob(sha256="ab", bytes=7))
        session.flush()
        session.add(Artifact(job_id=job_id, name="gguf/a b.gguf", kind="gguf", blob_sha256="ab"))
    move(supervised, job_id, JobStatus.RUNNING, JobStatus.SUCCEEDED)
    notify(supervised.runner)
    (artifact,) = json.loads(receiver.received[0].body)["data"]["artifacts"]
    url = f"https://tunes.example/v1/jobs/{job_id}/artifacts/gguf/a%20b.gguf"
    assert artifact == {"name": "gguf/a b.gguf", "bytes": 7, "sha256": "ab", "url": url}


def test_nothing_is_sent_of_a_transition_that_is_not_committed(submit, supervised, receiver):
    job_id = submit(receiver.url())
    with pytest.raises(ZeroDivisionError), write_session(supervised.engine) as session:
        jobs.set_status(session, jobs.get(session, job_id), JobStatus.CANCELLED, "moved")
        _ = 1 / 0
    notify(supervised.runner)
    assert (receiver.received, deliveries(supervised)) == ([], [])


def test_a_failed_attempt_is_written_down_and_made_again_with_a_new_signature(submit, supervised, receiver, monkeypatch):
    monkeypatch.setattr("app.webhooks.schedule.PAUSES_SECONDS", (600,))
    receiver.answer = answer_with("500 Oops", body="gr\u00fcn".encode())
    move(supervised, submit(receiver.url()), JobStatus.CANCELLED)
    before = now()
    notify(supervised.runner)
    (delivery,) = deliveries(supervised)
    assert (delivery.status, delivery.tries, len(receiver.received)) == ("pending", 1, 1)
    assert before + timedelta(seconds=600) <= delivery.due_at <= now() + timedelta(seconds=720)
    (attempt,) = delivery.attempts
    assert (attempt["status_code"], attempt["error"], attempt["answer"]) == (500, None, "gr\u00fcn")
    notify(supervised.runner)
    assert len(receiver.received) == 1
    receiver.answer = answer_with("204 No Content", body=b"")
    make_due(supervised)
    notify(supervised.runner)
    (delivery,) = deliveries(supervised)
    assert (delivery.status, delivery.due_at, len(delivery.attempts)) == ("delivered", None, 2)
    first, second = receiver.received
    assert first.body == second.body
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert Webhook(KEY).verify(second.body, second.headers)


def test_retry_after_is_heeded(submit, supervised, receiver):
    receiver.answer = answer_with("429 Too Many Requests", "Retry-After: 1000\r\n")
    move(supervised, submit(receiver.url()), JobStatus.CANCELLED)
    before = now()
    notify(supervised.runner)
    (delivery,) = deliveries(supervised)
    assert before + timedelta(seconds=1000) <= delivery.due_at <= now() + timedelta(seconds=1000)


@pytest.mark.parametrize(("answer", "tries"), [("410 Gone", 1), ("503 Busy", 11)])
def test_it_is_given_up_when_the_receiver_is_gone_and_after_the_last_attempt(submit, supervised, receiver, answer, tries):
    receiver.answer = answer_with(answer)
    move(supervised, submit(receiver.url()), JobStatus.CANCELLED)
    for _ in range(15):
        make_due(supervised)
        notify(supervised.runner)
    (delivery,) = deliveries(supervised)
    assert (delivery.status, delivery.due_at, len(receiver.received)) == ("failed", None, tries)


def test_a_key_that_is_gone_fails_the_attempt_only(submit, supervised, receiver):
    job_id = submit(receiver.url())
    with write_session(supervised.engine, DEFAULT_TENANT) as session:
        secrets.delete(session, "hook")
    move(supervised, job_id, JobStatus.CANCELLED)
    notify(supervised.runner)
    assert deliveries(supervised)[0].attempts[0]["error"] == "Not sent: the secret 'hook' is gone, or is no signing secret."
    with write_session(supervised.engine, DEFAULT_TENANT) as session:
        secrets.put(session, supervised.settings, "hook", KEY)
    make_due(supervised)
    notify(supervised.runner)
    assert deliveries(supervised)[0].status == "delivered"
    assert len(receiver.received) == 1


def test_the_end_of_a_job_that_was_deleted_at_once_is_told_all_the_same(submit, supervised, receiver):
    job_id = submit(receiver.url())
    move(supervised, job_id, JobStatus.CANCELLED)
    with write_session(supervised.engine) as session:
        session.delete(jobs.get(session, job_id))
    notify(supervised.runner)
    assert json.loads(receiver.received[0].body)["data"]["id"] == job_id


def test_a_hanging_receiver_holds_up_nobody_else(submit, supervised, receiver, monkeypatch):
    monkeypatch.setattr("app.webhooks.delivery.send", partial(send, seconds=600.0))
    with Receiver(answer=lambda connection: hanging.stopped.wait()) as hanging:
        for _ in range(12):
            move(supervised, submit(hanging.url("localhost")), JobStatus.CANCELLED)
        move(supervised, submit(receiver.url()), JobStatus.CANCELLED)
        thread = Thread(target=notify, args=[supervised.runner])
        thread.start()
        wait_until(lambda: receiver.received)
        assert len(hanging.received) <= 2
        move(supervised, submit(receiver.url(path="/later")), JobStatus.CANCELLED)
        wait_until(lambda: [got for got in receiver.received if got.path == "/later"])
        supervised.runner.stop.times = 1
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()


def test_two_notifiers_send_each_delivery_once(submit, supervised, receiver):
    for _ in range(12):
        move(supervised, submit(receiver.url()), JobStatus.CANCELLED)
    threads = [Thread(target=notify, args=[supervised.make_runner(f"wrk_{n}")]) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert len({got.headers["webhook-id"] for got in receiver.received}) == len(receiver.received) == 12


def test_a_notify_worker_that_is_killed_while_it_sends_is_followed_by_one_that_sends_again(
    submit, supervised, start_worker, reaper, receiver
):
    worker = start_worker("notify")
    receiver.answer = lambda connection: receiver.stopped.wait()
    job_id = submit(receiver.url())
    with write_session(supervised.engine) as session:
        jobs.set_status(session, jobs.get(session, job_id), JobStatus.CANCELLED, "moved")
        time.sleep(0.5)  # the worker looks, and must see nothing before the commit
        assert receiver.received == []
    wait_until(lambda: receiver.received)
    worker.kill()
    worker.wait()
    supervised.expire_leases()
    receiver.answer = answer_with()
    move(supervised, submit(receiver.url(path="/nobody-there")), JobStatus.CANCELLED)
    start_worker("notify")
    wait_until(lambda: {delivery.status for delivery in deliveries(supervised)} == {"delivered"})
    paths = [got.path for got in receiver.received]
    assert (paths.count("/hook"), paths.count("/nobody-there")) == (2, 1)
    assert len({got.headers["webhook-id"] for got in receiver.received}) == 2
