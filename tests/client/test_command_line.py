import io
import json
import subprocess
import sys

import pytest
from rich.console import Console

from client import cli
from client.api import ApiError, Client
from client.follow import follow

JOB = {
    "id": "job_1", "name": None, "status": "running", "stage": "train", "queue_position": None, "error": None, "artifacts": [],
    "created_at": "2026-11-22T10:00:00Z", "started_at": None, "finished_at": None, "stages": [],
    "spec": {"base_model": "small"},
    "progress": {"step": 3, "total_steps": 12, "percent": 25.0, "eta_seconds": 90, "tokens_per_second": 640.2},
}  # fmt: skip
POINT = {"step": 3, "time": 1.0, "loss": 0.91}


def event(number, kind):
    return {
        "id": f"evt_{number}",
        "type": kind,
        "created_at": "2026-11-22T10:00:00Z",
        "message": f"message {number}",
        "data": {},
    }


def page(*items):
    return {"object": "list", "data": list(items), "has_more": False, "first_id": None, "last_id": None}


def run(*arguments, monkeypatch):
    """The exit code of one command line, run in this process."""
    monkeypatch.setattr(sys, "argv", ["tunesmith", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    return exit_.value.code or 0


def submit(service, tmp_path, monkeypatch, *flags, jobs, events=()):
    """`submit --follow` against a service whose job and events answer in turn as given."""
    service.answers |= {
        "/v1/jobs/job_1": jobs,
        "/v1/jobs/job_1/events": list(events) or [(200, page())],
        "/v1/jobs/job_1/metrics": [(200, page(POINT))],
    }
    monkeypatch.setattr(Client, "submit", lambda self, spec: JOB)
    path = tmp_path / "job.json"
    path.write_text("{}")
    return run("submit", path, "--follow", "--url", service.url, *flags, monkeypatch=monkeypatch)


def test_unreachable_service_is_said_in_a_sentence():
    done = subprocess.run(
        [sys.executable, "-m", "client.cli", "jobs", "--url", "http://127.0.0.1:9"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "tunesmith up" in done.stderr
    assert "Traceback" not in done.stderr


def test_answer_of_something_else_is_an_error_with_its_status(service):
    service.answers["/v1/jobs"] = [(502, "Bad gateway")]
    with Client(service.url) as client, pytest.raises(ApiError, match="502"):
        client.jobs()


def test_follow_prints_events_and_progress_and_ends_well(service, tmp_path, monkeypatch, capsys):
    events = [(200, page(event(1, "job.started"))), (200, page(event(2, "job.warning"))), (200, page())]
    jobs = [(200, JOB), (200, JOB), (200, JOB | {"status": "succeeded"})]
    assert submit(service, tmp_path, monkeypatch, jobs=jobs, events=events) == 0
    printed = capsys.readouterr().out
    assert printed.count("message 1") == printed.count("message 2") == 1
    assert "train  3/12  loss 0.910  640 tokens/s  0:01:30 left" in printed
    assert "job_1 succeeded" in printed


def test_follow_on_a_terminal_moves_a_bar_and_leaves_the_events(service):
    jobs = [(200, JOB), (200, JOB | {"status": "succeeded"})]
    events = [(200, page(event(1, "job.started"))), (200, page())]
    paths = {"/v1/jobs/job_1": jobs, "/v1/jobs/job_1/events": events, "/v1/jobs/job_1/metrics": [(200, page(POINT))]}
    service.answers |= paths
    screen = io.StringIO()
    with Client(service.url) as client:
        job = follow(client, "job_1", Console(file=screen, force_terminal=True, width=120))
    assert job["status"] == "succeeded"
    for text in ("message 1", "━", "3/12", "loss 0.910", "job_1 succeeded"):
        assert text in screen.getvalue()


def test_follow_sits_out_a_restart_of_the_service(service, tmp_path, monkeypatch, capsys):
    jobs = [(200, JOB), None, (503, {"error": {"message": "Starting."}}), (200, JOB | {"status": "succeeded"})]
    assert submit(service, tmp_path, monkeypatch, jobs=jobs) == 0
    assert capsys.readouterr().err.count("Trying again") == 1


def test_failed_job_ends_with_its_error_and_hint_and_exit_1(service, tmp_path, monkeypatch, capsys):
    error = {
        "code": "dataset_empty",
        "message": "No row is left.",
        "hint": "Send rows.",
        "param": "dataset.file",
        "patch": None,
    }
    jobs = [(200, JOB | {"status": "failed", "error": error})]
    assert submit(service, tmp_path, monkeypatch, jobs=jobs) == 1
    printed = capsys.readouterr().out
    assert "dataset_empty (dataset.file): No row is left." in printed
    assert "Send rows." in printed


def test_follow_as_json_is_one_object_a_line(service, tmp_path, monkeypatch, capsys):
    events = [(200, page(event(1, "job.started")))]
    assert submit(service, tmp_path, monkeypatch, "--json", jobs=[(200, JOB | {"status": "succeeded"})], events=events) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["id"] for line in lines] == ["evt_1", "job_1"]


def test_error_as_json_has_the_one_shape(service, monkeypatch, capsys):
    error = {"message": "No job.", "type": "invalid_request_error", "param": None, "code": "not_found"}
    service.answers["/v1/jobs/job_1"] = [(404, {"error": error})]
    assert run("show", "job_1", "--json", "--url", service.url, monkeypatch=monkeypatch) == 1
    assert json.loads(capsys.readouterr().err) == {"error": error}


def test_lists_in_a_pipe_are_tab_separated(service, monkeypatch, capsys):
    service.answers["/v1/jobs"] = [(200, page(JOB))]
    assert run("jobs", "--url", service.url, monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out.split("\t")[:4] == ["job_1", "running", "train", "25%"]


@pytest.mark.parametrize("text", ["{", "[]", '"job"'])
def test_job_file_that_is_no_object_is_refused_before_anything_is_sent(tmp_path, monkeypatch, capsys, text):
    path = tmp_path / "job.json"
    path.write_text(text)
    assert run("submit", path, "--url", "http://127.0.0.1:9", monkeypatch=monkeypatch) == 1
    assert "job.json" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["up", "api", "worker", "reaper"])
def test_parts_of_the_service_get_their_flags_as_they_are(part):
    done = subprocess.run([sys.executable, "-m", "client.cli", part, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--data-dir" in done.stdout
