"""Base models of the hub, checked against a hub of the test's own."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

FOUND = {"good/model": {"model_type": "llama"}, "good/packed": {"quantization_config": {"quant_method": "gptq"}}}
ERRORS = {
    "good/gated": (403, "GatedRepo"),
    "good/hidden": (401, "RepoNotFound"),
    "good/empty": (404, "EntryNotFound"),
    "good/ill": (500, ""),
}


class Hub(BaseHTTPRequestHandler):
    requests = 0

    def do_GET(self):
        Hub.requests += 1
        repo, _, place = self.path.lstrip("/").partition("/resolve/")
        status, error = (200, "") if repo in FOUND else ERRORS.get(repo, (404, "RepoNotFound"))
        if place != "main/config.json" and status == 200:
            status, error = 404, "RevisionNotFound"
        body = json.dumps(FOUND.get(repo)).encode() if status == 200 else b""
        self.send_response(status)
        self.send_header("X-Error-Code", error)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


CODE = """
import json, sys
from app.base_models import catalog
from app.settings import Settings
problems = [catalog.check(repo, revision, Settings()) for repo, revision in json.loads(sys.argv[1])]
print(json.dumps([problem and [problem.param, problem.code] for problem in problems]))
"""


def check(monkeypatch, endpoint, *models):
    """In a fresh interpreter, because huggingface_hub reads its endpoint when it is imported."""
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    done = subprocess.run([sys.executable, "-c", CODE, json.dumps(models)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_model_is_looked_up_and_refused_for_what_the_hub_says(hub, monkeypatch):
    asked = {
        ("good/model", None): None,
        ("good/model", "v9"): ["revision", "model_not_found"],
        ("good/packed", None): ["base_model", "model_unsupported"],
        ("good/gated", None): ["base_model", "model_gated"],
        ("good/hidden", None): ["base_model", "model_not_found"],
        ("good/none", None): ["base_model", "model_not_found"],
        ("good/empty", None): ["base_model", "model_unsupported"],
        ("good/ill", None): None,
    }
    assert check(monkeypatch, hub, *asked) == list(asked.values())


def test_a_hub_that_does_not_answer_is_asked_once_and_believed_to_have_the_model(monkeypatch):
    assert check(monkeypatch, "http://127.0.0.1:1", ("good/model", None)) == [None]


def test_an_offline_service_asks_nobody(hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = Hub.requests
    assert check(monkeypatch, hub, ("good/none", None)) == [None]
    assert Hub.requests == before
