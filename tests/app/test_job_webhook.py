"""A job's own URL, as its spec names it."""

import pytest

from app.webhooks.signing import make_secret

URL = "https://ci.example.com/hook"


@pytest.fixture
def refuse(client, upload):
    """The details of the refusal of a job with this webhook."""

    def refuse(webhook):
        spec = {"base_model": "smollm2-135m-instruct", "dataset": {"file": upload()["id"]}, "webhook": webhook}
        answer = client.post("/v1/jobs", json=spec)
        assert answer.status_code == 422
        assert "hunter2" not in answer.text
        return {(detail["param"], detail["code"]) for detail in answer.json()["error"]["details"]}

    return refuse


def store(client, value):
    assert client.put("/v1/secrets/hook", json={"value": value}).status_code == 200


def test_a_url_is_told_of_the_ends_of_its_job_unless_it_asks_for_more(client, submit):
    store(client, make_secret())
    webhook = submit(webhook={"url": URL, "secret": "secret:hook"})["spec"]["webhook"]
    ends = [f"fine_tuning.job.{end}" for end in ("succeeded", "failed", "cancelled")]
    assert webhook == {"url": URL, "secret": "secret:hook", "event_types": ends}
    webhook = submit(webhook={"url": URL, "secret": "secret:hook", "event_types": ["tunesmith.job.paused"]})["spec"]["webhook"]
    assert webhook["event_types"] == ["tunesmith.job.paused"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"url": None}, "webhook.url"),
        ({"secret": None}, "webhook.secret"),
        ({"secret": "hunter2"}, "webhook.secret"),
        ({"event_types": []}, "webhook.event_types"),
        ({"event_types": ["job.succeeded"]}, "webhook.event_types[0]"),
        ({"method": "PUT"}, "webhook.method"),
        ({"url": "http://ci.example.com/"}, "webhook.url"),
        ({"url": "https://169.254.169.254/latest"}, "webhook.url"),
        ({"url": "https://me:hunter2@ci.example.com/"}, "webhook.url"),
    ],
)
def test_what_cannot_be_sent_to_is_refused_at_once(client, refuse, change, param):
    store(client, make_secret())
    assert refuse({"url": URL, "secret": "secret:hook"} | change) == {(param, "invalid_spec")}


@pytest.mark.parametrize("value", ["hunter2", "whsec_hunter2", "whsec_aHVudGVyMg=="])
def test_its_key_must_be_stored_and_have_the_form_that_libraries_read(client, refuse, value):
    webhook = {"url": URL, "secret": "secret:hook"}
    assert refuse(webhook) == {("webhook.secret", "secret_not_found")}
    store(client, value)
    assert refuse(webhook) == {("webhook.secret", "invalid_spec")}
