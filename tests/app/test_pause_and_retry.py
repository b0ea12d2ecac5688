"""Pausing, resuming and retrying, as far as no worker is needed."""

import pytest

from app.db import write_session
from app.jobs import repository
from app.jobs.states import JobStatus


def act(client, job_id, action, **body):
    return client.post(f"/v1/jobs/{job_id}/{action}", **({"json": body} if body else {}))


def list_types(client, job_id):
    return [event["type"] for event in client.get(f"/v1/jobs/{job_id}/events").json()["data"]]


@pytest.fixture
def failed(engine, submit):
    """Makes a job that failed in its first stage."""

    def failed(**fields):
        job_id = submit(**fields)["id"]
        with write_session(engine) as session:
            job = repository.get(session, job_id)
            repository.set_status(session, job, JobStatus.FAILED, "It failed.")
            job.error = {"code": "internal", "message": "It failed."}
        return job_id

    return failed


def test_a_waiting_job_is_paused_at_once_and_waits_again_when_resumed(client, submit):
    first, second = submit()["id"], submit()["id"]
    answer = act(client, first, "pause")
    assert (answer.status_code, answer.json()["status"], answer.json()["queue_position"]) == (202, "paused", None)
    ahead = client.get(f"/v1/jobs/{second}").json()["queue_position"]
    assert act(client, first, "pause").json()["status"] == "paused"
    answer = act(client, first, "resume")
    assert (answer.status_code, answer.json()["status"], answer.json()["attempts"]) == (202, "queued", 2)
    assert client.get(f"/v1/jobs/{second}").json()["queue_position"] == ahead + 1
    assert list_types(client, first) == ["job.queued", "job.paused", "job.resumed"]


def test_a_running_job_is_asked_to_pause_and_the_request_can_be_taken_back(client, submit, take_up):
    job_id = submit()["id"]
    take_up(job_id)
    asked = act(client, job_id, "pause").json()
    assert asked["status"] == "running" and asked["pause_requested_at"]
    back = act(client, job_id, "resume").json()
    assert (back["status"], back["pause_requested_at"]) == ("running", None)


def test_a_paused_job_can_be_cancelled_and_deleted(client, submit):
    job_id = submit()["id"]
    act(client, job_id, "pause")
    assert act(client, job_id, "cancel").json()["status"] == "cancelled"
    other = submit()["id"]
    act(client, other, "pause")
    assert client.delete(f"/v1/jobs/{other}").status_code == 200


@pytest.mark.parametrize(
    ("status", "action", "code"),
    [
        ("succeeded", "pause", "job_ended"),
        ("failed", "pause", "job_ended"),
        ("running", "resume", "job_not_paused"),
        ("failed", "resume", "job_not_paused"),
        ("running", "retry", "job_not_failed"),
        ("succeeded", "retry", "job_not_failed"),
    ],
)
def test_what_the_state_of_a_job_forbids_is_a_conflict(client, submit, take_up, end_job, status, action, code):
    job_id = submit()["id"]
    take_up(job_id)
    if status != "running":
        end_job(job_id, JobStatus(status))
    answer = act(client, job_id, action)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, code)
    assert answer.headers["x-should-retry"] == "false"


def test_a_job_that_is_being_cancelled_cannot_be_paused(client, submit, take_up):
    job_id = submit()["id"]
    take_up(job_id)
    act(client, job_id, "cancel")
    assert act(client, job_id, "pause").json()["error"]["code"] == "job_ended"


def test_a_retry_queues_the_job_as_it_was(client, failed):
    job_id = failed(name="mine")
    before = client.get(f"/v1/jobs/{job_id}").json()
    answer = act(client, job_id, "retry")
    job = answer.json()
    assert (answer.status_code, job["status"], job["stage"], job["attempts"]) == (202, "queued", "prepare", 2)
    assert (job["error"], job["finished_at"], job["spec"]) == (None, None, before["spec"])
    assert list_types(client, job_id)[-1] == "job.retrying"


def test_a_cancelled_job_can_be_retried(client, submit):
    job_id = submit()["id"]
    act(client, job_id, "cancel")
    job = act(client, job_id, "retry").json()
    assert (job["status"], job["cancel_requested_at"], job["queue_position"]) == ("queued", None, 2)


def test_overrides_change_the_spec_and_what_is_searched_by_it(client, failed):
    job_id = failed(labels={"team": "a"})
    change = {"training": {"max_steps": 7, "learning_rate": 1e-5}, "labels": {"team": "b"}, "priority": 3, "name": "new"}
    job = act(client, job_id, "retry", **change).json()
    assert (job["spec"]["training"]["max_steps"], job["spec"]["training"]["epochs"]) == (7, None)
    assert job["spec"]["training"]["batch_size"] == 2
    assert (job["name"], job["labels"], job["spec"]["priority"]) == ("new", {"team": "b"}, 3)
    assert [found["id"] for found in client.get("/v1/jobs?label.team=b").json()["data"]] == [job_id]
    assert client.get("/v1/jobs?label.team=a").json()["data"] == []
    assert client.get(f"/v1/jobs/{job_id}/events").json()["data"][-1]["data"]["patch"] == change


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"training": {"learnin_rate": 1}}, "training.learnin_rate", "invalid_spec"),
        ({"training": {"batch_size": 0}}, "training.batch_size", "invalid_spec"),
        ({"training": {"max_steps": 5, "epochs": 1}}, "training", "invalid_spec"),
        ({"dataset": {"file": "file-gone"}}, "dataset.file", "dataset_not_found"),
        ({"gpus": 2}, "gpus", "not_available"),
        ({"base_model": None}, "base_model", "invalid_spec"),
    ],
)
def test_overrides_that_cannot_be_are_refused_and_nothing_is_queued(client, failed, change, param, code):
    job_id = failed()
    answer = act(client, job_id, "retry", **change)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (422, param, code), error
    assert client.get(f"/v1/jobs/{job_id}").json()["status"] == "failed"


def test_a_misspelt_override_names_the_field_that_was_meant(client, failed):
    error = act(client, failed(), "retry", training={"learnin_rate": 1}).json()["error"]
    assert "learning_rate" in error["message"]
