"""Models of a hub that is slow, ill, or wants to know who asks: with the real client, against a hub of the test's own."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hub_server import HubServer

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
WEIGHTS = bytes(range(256)) * 12
CHUNK = 10 << 20
"""What the client writes at once."""
LARGE = {"model.safetensors": bytes(range(256)) * 100_000}
MODEL = {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": WEIGHTS, "tokenizer.json": b"{}"}

FETCH = """
import json, sys
from pathlib import Path
from worker.data import hub
from worker.data.base_models import fetch
from worker.stages import StageFailure
hub.PAUSES = (0.01, 0.01, 0.01)
def answer(name, revision=None, token=None):
    reports = []
    def report(kind, **data):
        reports.append([kind, data.get("code"), data.get("message")])
        with open(sys.argv[1] + ".reports", "a") as file:
            print(data.get("message"), file=file)
    try:
        model = fetch(
            name, revision, cache_dir=Path(sys.argv[1]), models_dir=None, token=token, ask_access=True, report=report
        )
        answer = {"path": str(model.path), "revision": model.revision}
    except StageFailure as failure:
        answer = {key: getattr(failure, key) for key in ("code", "message", "hint", "param", "patch")}
    return answer | {"reports": reports}
print(json.dumps([answer(*request) for request in json.loads(sys.argv[2])]))
"""


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture
def start(hub, tmp_path):
    """Starts a process that fetches models, each given as name, revision and token; all processes share a cache."""

    def start(*requests, **environment):
        environment = os.environ | hub.environment | {"HF_HOME": str(tmp_path / "home")} | environment
        command = [sys.executable, "-c", FETCH, str(tmp_path / "cache"), json.dumps(requests)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def answers_of(process):
    output, errors = process.communicate(timeout=280)
    assert process.returncode == 0, errors
    return json.loads(output.splitlines()[-1])


@pytest.fixture
def fetch(start):
    return lambda *request, **environment: answers_of(start(request, **environment))[0]


def content_of(answer):
    return {path.name: path.read_bytes() for path in Path(answer["path"]).iterdir()}


def messages(answer, words):
    return [message for _, _, message in answer["reports"] if message and words in message]


def test_a_storm_of_errors_is_sat_out(hub, fetch):
    hub.add("models", "org/tiny", MODEL)
    hub.befall("GET /api/models", status=503, times=2)
    hub.befall("HEAD .*config.json", status=500)
    hub.befall("GET /content", status=502)
    answer = fetch("org/tiny")
    assert content_of(answer) == MODEL
    assert len(messages(answer, "status 503. Trying again in 0.01 s.")) == 2


def test_a_hub_that_stays_ill_is_unavailable(hub, fetch):
    hub.add("models", "org/tiny", MODEL)
    hub.befall("GET /api/models", status=503, times=99)
    answer = fetch("org/tiny")
    assert (answer["code"], len(messages(answer, "Trying again"))) == ("hub_unavailable", 3)


def test_an_answer_that_takes_too_long_is_asked_for_again(hub, fetch):
    hub.add("models", "org/tiny", MODEL)
    again = threading.Event()
    hub.befall("GET /content", meanwhile=again.wait)
    hub.befall("GET /content", meanwhile=again.set)
    assert content_of(fetch("org/tiny", HF_HUB_DOWNLOAD_TIMEOUT="2")) == MODEL


def test_a_body_that_breaks_off_goes_on_where_it_broke(hub, fetch):
    hub.add("models", "org/tiny", MODEL | LARGE)
    hub.befall("GET /content", cut=CHUNK + 1000)
    assert content_of(fetch("org/tiny")) == MODEL | LARGE
    assert [wanted.partition("-")[0] for wanted in hub.ranges] == [f"bytes={CHUNK}"]


def test_a_download_that_was_killed_keeps_the_files_that_had_arrived(hub, start, fetch, tmp_path):
    hub.add("models", "org/tiny", MODEL)
    waiting, gone = threading.Event(), threading.Event()
    hub.befall("GET /content", meanwhile=lambda: (waiting.set(), gone.wait()))
    process = start(["org/tiny"])
    assert waiting.wait(120)
    [part] = (tmp_path / "cache").rglob("*.part")
    while not any(part.rglob("tokenizer.json.metadata")):  # with it, the hub's client knows the file again
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.communicate()
    hub.requests.clear()
    assert content_of(fetch("org/tiny")) == MODEL
    assert not part.exists()
    assert not [request for request in hub.requests if "json" in request]


def test_a_file_that_arrives_damaged_is_fetched_again(hub, fetch):
    hub.add("models", "org/tiny", MODEL)
    hub.befall("GET /content", corrupt=True)
    hub.befall("GET .*tokenizer.json", corrupt=True)
    answer = fetch("org/tiny")
    assert content_of(answer) == MODEL
    assert messages(answer, "arrived damaged. Trying again")


def test_jobs_that_start_together_share_one_download(hub, start, tmp_path):
    """The second finds the first at it: that one has its answer when the other has said that it waits."""
    commit = hub.add("models", "org/tiny", MODEL)

    def let_the_other_come():
        reports, deadline = tmp_path / "cache.reports", time.monotonic() + 120
        while not (reports.exists() and "Waiting for another process" in reports.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.02)

    hub.befall("GET /content", meanwhile=let_the_other_come)
    processes = [start(["org/tiny"]) for _ in range(2)]
    answers = [answers_of(process)[0] for process in processes]
    assert [answer["revision"] for answer in answers] == [commit] * 2
    assert sum(request.startswith("GET /content") for request in hub.requests) == 1
    assert any(messages(answer, "Waiting for another process") for answer in answers)


@pytest.mark.parametrize(("kind", "refused"), [("gated", "model_gated"), ("private", "model_not_found")])
def test_a_closed_repository_needs_a_token_also_when_it_is_in_the_cache(hub, start, kind, refused):
    commit = hub.add("models", "org/closed", MODEL, **{kind: True}, readers={"hf_friend"})
    asked = [(None, None), (None, "hf_reader"), (None, "hf_friend"), (None, "hf_reader"), (commit, "hf_reader")]
    answers = answers_of(start(*[["org/closed", *request] for request in asked]))
    assert content_of(answers.pop(2)) == MODEL
    for answer in answers:
        assert (answer["code"], answer["param"]) == (refused, "base_model")
        assert "secret:hf" in answer["hint"]
    [away] = answers_of(start(["org/closed", commit, "hf_reader"], HF_HUB_OFFLINE="1"))
    assert away["revision"] == commit
    assert [code for kind, code, _ in away["reports"] if kind == "warning"] == ["hub_offline"]


def test_an_adapter_is_refused_with_the_model_that_it_belongs_to(hub, fetch):
    config = json.dumps({"base_model_name_or_path": "org/whole", "peft_type": "LORA"}).encode()
    hub.add("models", "org/adapter", {"adapter_config.json": config, "adapter_model.safetensors": WEIGHTS})
    answer = fetch("org/adapter")
    assert (answer["code"], answer["patch"]) == ("model_unsupported", {"base_model": "org/whole"})
    assert "made for org/whole" in answer["message"]
    assert not any(request.startswith("GET /content") for request in hub.requests)


def test_a_repository_without_all_its_shards_is_refused(hub, fetch):
    index = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode()
    files = {"config.json": MODEL["config.json"], "model.safetensors.index.json": index, "model-1.safetensors": b"x"}
    hub.add("models", "org/half", files)
    answer = fetch("org/half")
    assert answer["code"] == "model_unsupported"
    assert "lacks model-2.safetensors" in answer["message"]
