"""The command line against the real API, which has no workers here: jobs wait."""

import io
import json
import os
import sys
import threading
import time
from ipaddress import ip_network

import pytest
import uvicorn
from held_port import held_port
from receiver import LOOPBACK, Receiver, answer_with
from standardwebhooks import Webhook

from app.keys.keyring import FRESH_SECONDS
from app.keys.local import create
from app.keys.schemas import NewKey
from app.keys.scopes import Scope
from app.main import create_app
from client import cli


@pytest.fixture
def tunesmith(settings, monkeypatch, capsys):
    """Runs one command line; returns its exit code, output and errors."""
    server = uvicorn.Server(uvicorn.Config(create_app(settings), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    monkeypatch.setenv("TUNESMITH_URL", f"http://127.0.0.1:{port}")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["tunesmith", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        printed = capsys.readouterr()
        return exit_.value.code or 0, printed.out, printed.err

    yield run
    server.should_exit = True
    thread.join(120)


@pytest.fixture
def spec(tmp_path):
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    path = tmp_path / "job.json"
    path.write_text(json.dumps({"name": "a try", "base_model": "smollm2-135m-instruct", "dataset": {"file": "rows.jsonl"}}))
    return path


def test_submit_uploads_the_file_beside_the_job_and_the_job_waits(tunesmith, spec):
    code, output, errors = tunesmith("submit", spec)
    job_id = output.strip()
    assert (code, job_id[:4]) == (0, "job_")
    assert "Uploading" in errors
    code, output, _ = tunesmith("show", job_id, "--json")
    job = json.loads(output)
    assert (job["status"], job["name"]) == ("queued", "a try")
    _, output, _ = tunesmith("files")
    assert output.split("\t")[0] == job["spec"]["dataset"]["file"]
    _, output, _ = tunesmith("jobs", "--status", "queued")
    assert output.startswith(job_id)
    _, output, _ = tunesmith("show", job_id)
    assert "waiting for a worker, place" in output
    assert "prepare" in output


def test_cancelled_job_is_followed_to_its_end_and_deleted(tunesmith, spec):
    job_id = tunesmith("submit", spec)[1].strip()
    assert tunesmith("cancel", job_id)[0] == 0
    code, output, _ = tunesmith("show", job_id, "--follow")
    assert code == 1
    assert "job.queued" in output
    assert f"{job_id} cancelled" in output
    assert tunesmith("delete", job_id)[0] == 0
    code, _, errors = tunesmith("show", job_id)
    assert code == 1
    assert job_id in errors


def test_refused_spec_names_every_field(tunesmith, spec):
    data = json.loads(spec.read_text())
    spec.write_text(json.dumps(data | {"base_modl": "x", "training": {"max_steps": 0}}))
    code, _, errors = tunesmith("submit", spec)
    assert code == 1
    assert "base_modl" in errors
    assert "training.max_steps" in errors


def test_upload_and_report_of_a_file_that_no_worker_has_read(tunesmith, spec):
    code, output, _ = tunesmith("files", "upload", spec.with_name("rows.jsonl"))
    assert (code, output[:5]) == (0, "file-")
    code, output, _ = tunesmith("files", "report", output.strip())
    assert code == 0
    assert "No worker has read the file yet" in output


def test_job_without_artifacts_has_nothing_to_download(tunesmith, spec, tmp_path):
    job_id = tunesmith("submit", spec)[1].strip()
    code, _, errors = tunesmith("download", job_id, "--to", tmp_path / "out")
    assert code == 1
    assert "no artifacts yet" in errors


def test_models_and_workers(tunesmith):
    assert tunesmith("models")[1].strip() == "smollm2-135m-instruct"
    assert tunesmith("workers") == (0, "", "")
    assert tunesmith("workers", "--alive", "somewhere")[0] == 1


def test_secret_is_read_from_a_pipe_listed_and_deleted(tunesmith, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hf_value\n"))
    code, output, _ = tunesmith("secrets", "set", "hf")
    assert (code, "secret:hf" in output, "hf_value" in output) == (0, True, False)
    assert tunesmith("secrets")[1].startswith("hf\t")
    assert tunesmith("secrets", "set", "hf", "hf_value")[0] == 2
    assert tunesmith("secrets", "delete", "hf")[0] == 0
    code, _, errors = tunesmith("secrets", "delete", "hf")
    assert (code, "GET /v1/secrets" in errors) == (1, True)


def test_keys_are_created_listed_and_revoked(tunesmith, settings, monkeypatch):
    """The first one in this process, as --local does it in one of its own."""
    assert "tunesmith keys create --local" in tunesmith("keys", "create")[2]
    monkeypatch.setenv("TUNESMITH_API_KEY", create(settings, NewKey(scopes=list(Scope))).key)
    time.sleep(FRESH_SECONDS)
    code, output, errors = tunesmith("keys", "create", "--name", "ci", "--scope", "read", "--expires-in-days", "1", "--json")
    made = json.loads(output)
    assert (code, made["scopes"], made["key"][-4:]) == (0, ["read"], made["hint"]), errors
    listed = tunesmith("keys", "list")[1]
    assert made["id"] in listed and made["key"] not in listed
    administrator = os.environ["TUNESMITH_API_KEY"]
    monkeypatch.setenv("TUNESMITH_API_KEY", made["key"])
    assert tunesmith("jobs")[0] == 0
    assert "'admin'" in tunesmith("keys")[2]
    monkeypatch.setenv("TUNESMITH_API_KEY", administrator)
    assert "revoked" in tunesmith("keys", "revoke", made["id"])[1]
    assert made["id"] not in tunesmith("keys")[1]
    monkeypatch.delenv("TUNESMITH_API_KEY")
    assert "TUNESMITH_API_KEY" in tunesmith("jobs")[2]


def test_an_endpoint_is_made_tried_told_and_deleted(tunesmith, spec, settings):
    settings.webhook_allow_cidrs = (ip_network(LOOPBACK),)
    with Receiver() as receiver:
        code, output, _ = tunesmith("webhooks", "create", receiver.url(), "--event", "fine_tuning.job.cancelled")
        endpoint_id, secret = output.splitlines()
        assert (code, endpoint_id[:3], secret[:6]) == (0, "wh_", "whsec_")
        assert tunesmith("webhooks")[1].split("\t")[:3] == [endpoint_id, "enabled", "127.0.0.1"]
        assert tunesmith("webhooks", "test", endpoint_id) == (0, "The receiver answered 200.\n", "")
        receiver.answer = answer_with("500 Oops")
        assert tunesmith("webhooks", "test", endpoint_id, "--event", "tunesmith.job.paused")[0] == 1
        assert Webhook(secret).verify(receiver.received[1].body, receiver.received[1].headers)["type"] == "tunesmith.job.paused"
    with held_port() as deaf:
        deaf_id = tunesmith("webhooks", "create", f"http://127.0.0.1:{deaf}/")[1].splitlines()[0]
        assert "Connection refused" in tunesmith("webhooks", "test", deaf_id)[2]
    assert tunesmith("webhooks", "delete", deaf_id)[0] == 0
    job_id = tunesmith("submit", spec)[1].strip()
    tunesmith("cancel", job_id)
    delivery = tunesmith("webhooks", "deliveries", "--job", job_id)[1].split("\t")
    assert delivery[1:5] == ["pending", "fine_tuning.job.cancelled", job_id, "0"]
    assert tunesmith("webhooks", "redeliver", delivery[0])[0] == 0
    assert tunesmith("webhooks", "delete", endpoint_id)[0] == 0
    assert tunesmith("webhooks", "list", "--json")[1] == "[]\n"
    code, _, errors = tunesmith("webhooks", "create", "http://8.8.8.8/")
    assert (code, "only https" in errors) == (1, True)
