import pytest
from sample_rows import DATASET
from sqlmodel import select

from app.db import read_session
from app.jobs.states import JobStatus
from app.models import Blob, Event, JobLabel, StageRun


def ids(answer):
    return [item["id"] for item in answer.json()["data"]]


def test_a_job_is_created_queued_with_the_contracts_defaults_resolved(client, submit):
    job = submit(name="first", labels={"team": "nlp"})
    assert (job["object"], job["status"], job["stage"], job["name"]) == ("job", "queued", "prepare", "first")
    assert job["attempts"] == 1
    assert job["labels"] == job["spec"]["labels"] == {"team": "nlp"}
    assert [(stage["name"], stage["status"]) for stage in job["stages"]] == [
        ("prepare", "queued"),
        ("train", "queued"),
        ("merge", "queued"),
        ("convert", "queued"),
        ("verify", "queued"),
    ]
    assert (job["spec"]["training"]["epochs"], job["spec"]["training"]["max_steps"]) == (1.0, None)
    assert job["spec"]["exports"] == [{"kind": "adapter"}, {"kind": "merged"}, {"kind": "gguf", "quantization": "q8_0"}]
    assert client.get(f"/v1/jobs/{job['id']}").json() == job


def test_the_answer_to_a_submission_says_where_the_job_is(client, upload):
    spec = {"base_model": "smollm2-135m-instruct", "dataset": {"file": upload()["id"]}}
    answer = client.post("/v1/jobs", json=spec)
    assert answer.headers["location"] == f"http://127.0.0.1:8000/v1/jobs/{answer.json()['id']}"


def test_what_is_not_known_yet_is_null(submit):
    job = submit()
    for part in ("progress", "data", "metrics", "memory"):
        assert set(job[part].values()) == {None}
    assert [job[key] for key in ("started_at", "finished_at", "error", "cancel_requested_at")] == [None] * 4


def test_warm_up_is_a_tenth_of_the_steps_and_none_in_a_one_step_job(submit):
    assert submit(training={"max_steps": 1})["spec"]["training"]["warmup_steps"] == 0
    assert submit(training={"max_steps": 20})["spec"]["training"]["warmup_steps"] == 2
    assert submit(training={"max_steps": 600})["spec"]["training"]["warmup_steps"] == 5


def test_a_job_that_exports_only_the_adapter_needs_two_stages(submit):
    job = submit(exports=[{"kind": "adapter"}])
    assert [stage["name"] for stage in job["stages"]] == ["prepare", "train"]


def test_positions_in_the_queue_follow_priority_then_age(client, submit):
    first, second, urgent = submit(), submit(), submit(priority=5)
    position = {job["id"]: client.get(f"/v1/jobs/{job['id']}").json()["queue_position"] for job in (first, second, urgent)}
    assert position[urgent["id"]] < position[first["id"]] < position[second["id"]]
    assert position[urgent["id"]] == 1


def test_the_list_filters_by_status_label_and_base_model(client, submit):
    plain = submit()
    labelled = submit(labels={"team": "nlp", "kind": "a=b/c"})
    client.post(f"/v1/jobs/{plain['id']}/cancel")
    assert ids(client.get("/v1/jobs?status=cancelled")) == [plain["id"]]
    assert ids(client.get("/v1/jobs?label.team=nlp")) == [labelled["id"]]
    assert ids(client.get("/v1/jobs", params={"label.team": "nlp", "label.kind": "a=b/c"})) == [labelled["id"]]
    assert ids(client.get("/v1/jobs?label.team=other")) == []
    assert len(ids(client.get("/v1/jobs?base_model=smollm2-135m-instruct"))) == 2
    assert ids(client.get("/v1/jobs?base_model=other/model")) == []


def test_the_pages_of_the_list_hold_every_job_once_newest_first(client, submit):
    submitted = [submit()["id"] for _ in range(7)]
    seen, after = [], None
    while True:
        page = client.get("/v1/jobs", params={"limit": 3} | ({"after": after} if after else {})).json()
        seen += [job["id"] for job in page["data"]]
        after = page["last_id"]
        if not page["has_more"]:
            break
    assert seen == sorted(submitted, reverse=True)
    assert client.get("/v1/jobs?limit=100000").json()["has_more"] is False


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=x", "limit"),
        ("status=done", "status"),
        ("stauts=running", "stauts"),
        ("labels.team=x", "labels.team"),
    ],
)
def test_a_wrong_query_parameter_is_refused_by_name(client, query, param):
    answer = client.get(f"/v1/jobs?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param)


def test_a_waiting_job_is_cancelled_at_once(client, submit):
    job_id = submit()["id"]
    answer = client.post(f"/v1/jobs/{job_id}/cancel")
    job = answer.json()
    assert (answer.status_code, job["status"], job["queue_position"]) == (202, "cancelled", None)
    assert job["finished_at"] is not None
    assert {stage["status"] for stage in job["stages"]} == {"cancelled"}
    events = client.get(f"/v1/jobs/{job_id}/events").json()["data"]
    assert [event["type"] for event in events] == ["job.queued", "job.cancelled"]


def test_a_running_job_is_asked_to_stop_and_asked_only_once(client, submit, take_up):
    job_id = submit()["id"]
    take_up(job_id)
    first = client.post(f"/v1/jobs/{job_id}/cancel").json()
    assert (first["status"], first["cancel_requested_at"] is not None) == ("running", True)
    again = client.post(f"/v1/jobs/{job_id}/cancel")
    assert (again.status_code, again.json()["cancel_requested_at"]) == (202, first["cancel_requested_at"])


@pytest.mark.parametrize("status", [JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED])
def test_an_ended_job_cannot_be_cancelled(client, submit, take_up, end_job, status):
    job_id = submit()["id"]
    take_up(job_id)
    end_job(job_id, status)
    answer = client.post(f"/v1/jobs/{job_id}/cancel")
    assert (answer.status_code, answer.json()["error"]["code"], answer.headers["x-should-retry"]) == (409, "job_ended", "false")


def test_a_running_job_cannot_be_deleted(client, submit, take_up):
    job_id = submit()["id"]
    take_up(job_id)
    answer = client.delete(f"/v1/jobs/{job_id}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "job_running")


def test_deleting_a_job_leaves_no_row_and_no_byte_but_what_others_name(
    client, engine, submit, take_up, end_job, make_artifact, storage
):
    kept, gone = submit(), submit(labels={"a": "b"})
    shared = make_artifact(kept["id"], "adapter/a.bin", b"shared")
    make_artifact(gone["id"], "adapter/a.bin", b"shared")
    own = make_artifact(gone["id"], "adapter/b.bin", b"own")
    of_a_file = make_artifact(gone["id"], "adapter/c.bin", DATASET)
    take_up(gone["id"])
    end_job(gone["id"], JobStatus.SUCCEEDED)
    log = storage.attempt_folder(gone["id"], "prepare", 1) / "log.txt"
    log.parent.mkdir(parents=True)
    log.write_text("x")
    assert client.delete(f"/v1/jobs/{gone['id']}").json() == {"id": gone["id"], "object": "job", "deleted": True}
    assert client.get(f"/v1/jobs/{gone['id']}").status_code == 404
    assert not storage.job_folder(gone["id"]).exists()
    assert [storage.blob(sha256).exists() for sha256 in (shared, own, of_a_file)] == [True, False, True]
    with read_session(engine) as session:
        assert session.get(Blob, own) is None
        assert session.exec(select(JobLabel)).all() == []
        assert {run.job_id for run in session.exec(select(StageRun))} == {kept["id"], None}
        assert {event.job_id for event in session.exec(select(Event))} == {kept["id"]}


def test_a_queued_job_can_be_deleted(client, submit):
    job_id = submit()["id"]
    assert client.delete(f"/v1/jobs/{job_id}").status_code == 200
    assert client.get("/v1/jobs").json()["data"] == []


def test_what_comes_later_says_so(client):
    answer = client.post("/v1/jobs/estimate", json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "not_available")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/cancel"),
        ("GET", "/events"),
        ("GET", "/events?stream=true"),
        ("GET", "/metrics"),
        ("GET", "/logs"),
        ("GET", "/checkpoints"),
        ("GET", "/attempts"),
        ("GET", "/artifacts"),
        ("GET", "/artifacts/adapter/x"),
        ("GET", "/report"),
    ],
)
def test_an_unknown_job_is_404(client, method, path):
    answer = client.request(method, f"/v1/jobs/job_nothing{path}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "job_not_found")
