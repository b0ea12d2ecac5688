"""Events, metrics, logs, checkpoints, attempts and the report of a job."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.db import write_session
from app.jobs import metrics, repository, stage_runs
from app.jobs.states import EventType, JobStatus, Stage, StageStatus
from app.models import Checkpoint, MetricChunk, StageRun


@pytest.fixture
def job_id(submit):
    return submit(name="a job", purpose="to see it")["id"]


@pytest.fixture
def warn(engine):
    def warn(job_id, count):
        with write_session(engine) as session:
            job = repository.get(session, job_id)
            for number in range(count):
                repository.record_event(session, job, EventType.JOB_WARNING, f"Warning {number}.", {"number": number})

    return warn


def read_stream(text):
    """The events of a stream as dicts of their fields; comments are left out."""
    blocks = [block.split("\n") for block in text.split("\n\n") if block and not block.startswith(":")]
    return [dict(line.split(": ", 1) for line in block) for block in blocks]


def test_events_are_paged_oldest_first(client, job_id, warn):
    warn(job_id, 5)
    path = f"/v1/jobs/{job_id}/events"
    first = client.get(path, params={"limit": 4}).json()
    assert [event["message"] for event in first["data"]] == ["The job was queued.", "Warning 0.", "Warning 1.", "Warning 2."]
    assert first["data"][1]["data"] == {"number": 0}
    assert first["has_more"] is True
    rest = client.get(path, params={"after": first["last_id"]}).json()
    assert [event["message"] for event in rest["data"]] == ["Warning 3.", "Warning 4."]
    assert client.get(path, params={"after": rest["last_id"]}).json()["data"] == []
    assert client.get(path, params={"after": "evt_nothing"}).json()["error"]["param"] == "after"


def test_the_stream_of_an_ended_job_is_its_list_and_ends(client, job_id, warn):
    warn(job_id, 30)
    client.post(f"/v1/jobs/{job_id}/cancel")
    answer = client.get(f"/v1/jobs/{job_id}/events?stream=true")
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    streamed = read_stream(answer.text)
    listed = client.get(f"/v1/jobs/{job_id}/events?limit=100").json()["data"]
    assert [event["id"] for event in streamed] == [event["id"] for event in listed]
    assert [event["event"] for event in streamed] == [event["type"] for event in listed]
    assert streamed[-1]["event"] == "job.cancelled"


def test_a_stream_goes_on_after_the_last_event_that_was_seen(client, job_id, warn):
    warn(job_id, 3)
    client.post(f"/v1/jobs/{job_id}/cancel")
    path = f"/v1/jobs/{job_id}/events"
    events = client.get(path).json()["data"]
    answer = client.get(f"{path}?stream=true", headers={"Last-Event-ID": events[2]["id"]})
    assert [event["id"] for event in read_stream(answer.text)] == [event["id"] for event in events[3:]]
    assert client.get(f"{path}?stream=true", headers={"Last-Event-ID": events[-1]["id"]}).text == ""
    answer = client.get(f"{path}?stream=true", headers={"Last-Event-ID": "evt_nothing"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "Last-Event-ID")


def make_run(session, job_id, stage, attempt, **fields):
    run = StageRun(job_id=job_id, stage=stage, attempt=attempt, resource=stage.resource, **fields)
    session.add(run)
    session.flush()
    return run


def chunk(run, *points):
    return MetricChunk(job_id=run.job_id, stage_run_id=run.id, points=list(points))


def test_metrics_of_a_resumed_job_are_those_of_the_last_attempt_at_each_step(client, engine, job_id):
    with write_session(engine) as session:
        first = make_run(session, job_id, Stage.TRAIN, 1)
        second = make_run(session, job_id, Stage.TRAIN, 2)
        session.add(chunk(first, *({"step": step, "loss": 1.0} for step in range(1, 10))))
        session.flush()
        session.add(chunk(second, {"step": 6, "loss": 2.0}, {"step": 6, "eval_loss": 3.0, "loss": None}))
    points = client.get(f"/v1/jobs/{job_id}/metrics").json()["data"]
    assert [(point["step"], point["loss"]) for point in points] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 1.0), (6, 2.0)]
    assert points[-1] == {
        "step": 6,
        "time": None,
        "loss": 2.0,
        "eval_loss": 3.0,
        "eval_perplexity": None,
        "eval_accuracy": None,
        "eval_stop_probability": None,
        "learning_rate": None,
        "grad_norm": None,
        "tokens_per_second": None,
        "reserved_bytes": None,
    }
    thinned = client.get(f"/v1/jobs/{job_id}/metrics?max_points=3").json()
    assert [point["step"] for point in thinned["data"]] == [2, 4, 6]
    assert (thinned["object"], thinned["has_more"]) == ("list", False)


@given(count=st.integers(0, 200), limit=st.integers(1, 50))
def test_thinning_keeps_order_and_the_last_point(count, limit):
    kept = metrics.thin(list(range(count)), limit)
    assert len(kept) == min(count, limit)
    assert kept == sorted(set(kept))
    assert kept[-1:] == list(range(count))[-1:]


@pytest.fixture
def with_attempts(engine, storage, job_id):
    """prepare succeeded; train was tried twice and has checkpoints at steps 10 and 20, the first already removed."""
    with write_session(engine) as session:
        prepare = stage_runs.claim(session, Stage.PREPARE.resource, "wrk_1", 60)
        while prepare.job_id is None:
            prepare = stage_runs.claim(session, Stage.PREPARE.resource, "wrk_1", 60)
        repository.get(session, job_id).stage = Stage.TRAIN
        outputs = {"values": {"documents": 3}, "files": []}
        stage_runs.finish(session, prepare.id, prepare.fence, StageStatus.SUCCEEDED, outputs=outputs, peak_host_bytes=1000)
        lost = {"code": "worker_lost", "message": "Gone."}
        make_run(session, job_id, Stage.TRAIN, 1, status=StageStatus.FAILED, error=lost)
        second = make_run(session, job_id, Stage.TRAIN, 2, status=StageStatus.RUNNING, worker_id="wrk_2")
        for step in (10, 20):
            session.add(Checkpoint(job_id=job_id, stage_run_id=second.id, step=step, bytes=77, metrics={"loss": 1.0}))
    for stage, attempt in ((Stage.PREPARE, 1), (Stage.TRAIN, 1), (Stage.TRAIN, 2)):
        folder = storage.attempt_folder(job_id, stage, attempt)
        folder.mkdir(parents=True)
        (folder / "log.txt").write_text(f"{stage} {attempt}: é\nsecond line\n")
    checkpoint = storage.attempt_folder(job_id, Stage.TRAIN, 2) / "out" / "checkpoints" / "step-000020"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights").write_bytes(bytes(77))
    (checkpoint / "manifest.json").write_text(json.dumps({"files": {"weights": {"bytes": 77}}}))


def test_attempts_are_all_there_and_the_job_shows_the_newest_of_each_stage(client, job_id, with_attempts):
    attempts = client.get(f"/v1/jobs/{job_id}/attempts").json()["data"]
    assert [(run["name"], run["attempt"], run["status"]) for run in attempts] == [
        ("prepare", 1, "succeeded"),
        ("train", 1, "failed"),
        ("train", 2, "running"),
    ]
    assert attempts[0]["duration_seconds"] >= 0
    assert attempts[0]["peak_host_bytes"] == 1000
    assert attempts[1]["error"]["code"] == "worker_lost"
    job = client.get(f"/v1/jobs/{job_id}").json()
    assert job["attempts"] == 2
    assert [(stage["name"], stage["status"], stage["attempt"]) for stage in job["stages"]] == [
        ("prepare", "succeeded", 1),
        ("train", "running", 2),
        ("merge", "queued", None),
        ("convert", "queued", None),
        ("verify", "queued", None),
    ]
    assert job["stages"][1]["worker"] == "wrk_2"


def test_logs_hold_all_attempts_in_order(client, job_id, with_attempts):
    answer = client.get(f"/v1/jobs/{job_id}/logs")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.text.splitlines() == [
        "==> prepare, attempt 1 <==",
        "prepare 1: é",
        "second line",
        "==> train, attempt 1 <==",
        "train 1: é",
        "second line",
        "==> train, attempt 2 <==",
        "train 2: é",
        "second line",
    ]
    assert "prepare" not in client.get(f"/v1/jobs/{job_id}/logs?stage=train").text
    assert client.get(f"/v1/jobs/{job_id}/logs?tail=2").text == "train 2: é\nsecond line\n"
    assert client.get(f"/v1/jobs/{job_id}/logs?stage=merge").text == ""
    assert client.get(f"/v1/jobs/{job_id}/logs?stage=../..").json()["error"]["param"] == "stage"


def test_checkpoints_say_whether_they_can_be_resumed(client, storage, job_id, with_attempts):
    checkpoints = client.get(f"/v1/jobs/{job_id}/checkpoints").json()["data"]
    assert [(found["step"], found["bytes"], found["resumable"], found["attempt"]) for found in checkpoints] == [
        (10, 77, False, 2),
        (20, 77, True, 2),
    ]
    (storage.attempt_folder(job_id, Stage.TRAIN, 2) / "out/checkpoints/step-000020/weights").write_bytes(bytes(76))
    assert not client.get(f"/v1/jobs/{job_id}/checkpoints").json()["data"][1]["resumable"]


def test_the_report_is_markdown_or_its_data(client, job_id, with_attempts):
    answer = client.get(f"/v1/jobs/{job_id}/report")
    assert answer.headers["content-type"] == "text/markdown; charset=utf-8"
    headings = [line for line in answer.text.splitlines() if line.startswith("## ")]
    assert headings == ["## Purpose", "## Setup", "## Performance observations", "## Outcomes"]
    data = client.get(f"/v1/jobs/{job_id}/report", headers={"accept": "application/json"}).json()
    assert (data["job_id"], data["purpose"]) == (job_id, "to see it")


def test_a_failed_job_shows_its_error(client, engine, job_id):
    error = {"code": "disk_full", "message": "The disk is full.", "hint": "Make space.", "param": None, "patch": None}
    with write_session(engine) as session:
        job = repository.get(session, job_id)
        job.error = error
        repository.set_status(session, job, JobStatus.FAILED, error["message"], error)
    job = client.get(f"/v1/jobs/{job_id}").json()
    assert (job["status"], job["error"]) == ("failed", error)
    assert {stage["status"] for stage in job["stages"][1:]} == {"cancelled"}
