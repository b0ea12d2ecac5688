import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hub_server import HubServer

from app.jobs.states import FailureCode
from worker.data.base_models import fetch
from worker.stages import StageFailure

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
WEIGHTS = b"\x02\0\0\0\0\0\0\0{}"
MODEL = {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": WEIGHTS, "tokenizer.json": b"{}"}


def model_of(**config):
    return MODEL | {"config.json": json.dumps(CONFIG | config).encode()}


FETCH = """
import json, sys
from pathlib import Path
from worker.data import hub
from worker.data.base_models import fetch
from worker.stages import StageFailure
hub.PAUSES = (0.01, 0.01)
def answer(name, revision=None, token=None, ask_access=True):
    reports = []
    def report(kind, **data):
        reports.append([kind, data])
    try:
        place = {"cache_dir": Path(sys.argv[1]), "models_dir": None}
        model = fetch(name, revision, **place, token=token, ask_access=ask_access, report=report)
        answer = {"path": str(model.path), "revision": model.revision}
    except StageFailure as failure:
        answer = {key: getattr(failure, key) for key in ("code", "message", "param", "patch")}
    loaded = [name for name in ("torch", "transformers", "huggingface_hub") if name in sys.modules]
    return answer | {"reports": reports, "loaded": loaded}
print(json.dumps([answer(*request) for request in json.loads(sys.argv[2])]))
"""


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture
def fetch_all(hub, tmp_path):
    """Fetches models, each given as name, revision and token, in one fresh process that talks to the test's hub."""

    def fetch_in_process(*requests, **environment):
        environment = os.environ | hub.environment | {"HF_HOME": str(tmp_path / "home")} | environment
        command = [sys.executable, "-c", FETCH, str(tmp_path / "cache"), json.dumps(requests)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return fetch_in_process


@pytest.fixture
def fetch_from(fetch_all):
    return lambda *request: fetch_all(request)[0]


def test_a_hub_model_is_downloaded_once_and_pinned(hub, fetch_from):
    files = MODEL | {
        "README.md": b"---\nlicense: mit\n---",
        "pytorch_model.bin": b"pickle",
        "onnx/model.onnx": b"x",
        "run.py": b"x",
    }
    commit = hub.add("models", "org/tiny", files)
    first = fetch_from("org/tiny")
    assert first["revision"] == commit
    folder = Path(first["path"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == MODEL | {"README.md": files["README.md"]}
    assert any("Downloading org/tiny" in data["message"] for kind, data in first["reports"] if kind == "progress")

    hub.add("models", "org/tiny", MODEL | {"config.json": json.dumps(CONFIG | {"later": 1}).encode()})
    hub.requests.clear()
    again = fetch_from("org/tiny", commit, None, False)
    assert again == first | {"reports": [], "loaded": []}
    assert hub.requests == []
    assert fetch_from("org/tiny")["revision"] != commit


def test_without_a_network_the_last_known_commit_is_used(hub, fetch_all, fetch_from):
    commit = hub.add("models", "org/tiny", MODEL)
    fetch_from("org/tiny")
    known, unknown = fetch_all(["org/tiny"], ["org/other"], HF_HUB_OFFLINE="1")
    assert known["revision"] == commit
    assert [data["code"] for kind, data in known["reports"] if kind == "warning"] == ["hub_offline"]
    assert unknown["code"] == FailureCode.HUB_UNAVAILABLE


def test_a_download_that_broke_off_goes_on(hub, fetch_from):
    commit = hub.add("models", "org/tiny", MODEL)
    folder = Path(fetch_from("org/tiny")["path"])
    part = folder.with_name(f"{commit}.part")
    folder.rename(part)
    (part / "model.safetensors").unlink()
    assert fetch_from("org/tiny", commit)["path"] == str(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == MODEL
    assert not part.exists()


@pytest.mark.provokes("model_unsupported")
def test_models_that_cannot_be_trained_are_refused_before_their_weights_are_fetched(hub, fetch_all):
    cases = {
        "org/pickled": ({"config.json": b"{}", "pytorch_model.bin": b"x"}, "safetensors"),
        "org/quantised": (model_of(quantization_config={"bits": 4}), "already quantised"),
        "org/encoder": (model_of(architectures=["BertModel"]), "not a causal language model"),
        "org/new": (model_of(model_type="llama9"), "'llama9'"),
        "org/remote": (model_of(model_type="odd", auto_map={"AutoModel": "x.Y"}), "code of its own"),
    }
    for name, (files, _) in cases.items():
        hub.add("models", name, files)
    for (name, (_, words)), answer in zip(cases.items(), fetch_all(*[[name] for name in cases]), strict=True):
        assert (answer["code"], answer["param"]) == (FailureCode.MODEL_UNSUPPORTED, "base_model"), name
        assert words in answer["message"]
    assert not any("model.safetensors" in request for request in hub.requests)


def test_a_model_with_code_that_transformers_also_has_is_taken(hub, fetch_from):
    hub.add("models", "org/both", model_of(auto_map={"AutoModel": "x.Y"}))
    answer = fetch_from("org/both")
    assert "path" in answer
    assert "torch" not in answer["loaded"]


def test_a_quantised_model_names_its_original(hub, fetch_all):
    originals = {
        "unsloth/Llama-3.2-1B-Instruct-bnb-4bit": "unsloth/Llama-3.2-1B-Instruct",
        "unsloth/Llama-3.2-1B-Instruct-unsloth-bnb-4bit": "unsloth/Llama-3.2-1B-Instruct",
        "org/Model-AWQ": "org/Model",
        "org/Unknown-GPTQ": None,
    }
    for name in originals:
        hub.add("models", name, model_of(quantization_config={}))
    card = {"README.md": b"---\nbase_model: org/Model\n---"}
    hub.add("models", "org/Model-AWQ", model_of(quantization_config={}) | card)
    answers = fetch_all(*[[name] for name in originals])
    assert [answer["patch"] for answer in answers] == [name and {"base_model": name} for name in originals.values()]
    assert "Use org/Model, its 16-bit original." in answers[2]["message"]


@pytest.mark.provokes("model_not_found", "model_gated", "hub_unauthorized", "hub_unavailable")
def test_hub_errors_have_their_codes(hub, fetch_all, fetch_from):
    hub.add("models", "org/gated", MODEL, gated=True)
    hub.add("models", "org/private", MODEL, private=True)
    hub.add("models", "org/tiny", MODEL)
    cases = {
        ("org/none",): ("model_not_found", "base_model"),
        ("org/gated",): ("model_gated", "base_model"),
        ("org/private",): ("model_not_found", "base_model"),
        ("org/tiny", None, "hf_wrong"): ("hub_unauthorized", "hub_token"),
        ("org/tiny", "no-branch"): ("model_not_found", "revision"),
        ("../etc",): ("model_not_found", "base_model"),
    }
    answers = fetch_all(*cases, ("org/gated", None, "hf_reader"), ("org/private", None, "hf_reader"))
    assert [(answer["code"], answer["param"]) for answer in answers[:-2]] == list(cases.values())
    assert all("path" in answer for answer in answers[-2:])
    hub.status = 500
    assert fetch_from("org/other")["code"] == "hub_unavailable"


def fetch_here(name, tmp_path, revision=None, reports=None):
    def report(kind, **data):
        if reports is not None:
            reports.append(data)

    return fetch(name, revision, cache_dir=tmp_path / "cache", models_dir=tmp_path / "models", report=report)


def make_folder(tmp_path, name="mine", **config):
    folder = tmp_path / "models" / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    return folder


def test_a_folder_of_the_operator_is_found_by_name(tmp_path):
    folder = make_folder(tmp_path)
    model = fetch_here("mine", tmp_path)
    assert model.path == folder
    assert fetch_here("mine", tmp_path, model.revision) == model
    (folder / "config.json").write_text(json.dumps(CONFIG | {"rope_theta": 1.0}))
    with pytest.raises(StageFailure) as failure:
        fetch_here("mine", tmp_path, model.revision)
    assert (failure.value.code, failure.value.param) == (FailureCode.INVALID_SPEC, "revision")


@pytest.mark.parametrize("name", ["../outside", "/etc", "..", ".hidden", "a/b/c"])
def test_a_name_never_leads_out_of_the_models_folder(tmp_path, name):
    make_folder(tmp_path)
    make_folder(tmp_path / "models", "../outside")
    with pytest.raises(StageFailure) as failure:
        fetch_here(name, tmp_path)
    assert failure.value.code == FailureCode.MODEL_NOT_FOUND


def test_a_folder_without_safetensors_is_refused(tmp_path):
    (make_folder(tmp_path) / "model.safetensors").unlink()
    with pytest.raises(StageFailure, match="safetensors"):
        fetch_here("mine", tmp_path)


def test_the_built_in_model_is_made_once_by_whoever_comes_first(tmp_path):
    reports: list[dict] = []
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(fetch_here("smollm2-135m-instruct", tmp_path, None, reports)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    assert sorted(path.name for path in found[0].path.iterdir()) == [
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    written = found[0].path.stat().st_mtime_ns
    assert fetch_here("smollm2-135m-instruct", tmp_path, found[0].revision) == found[0]
    assert found[0].path.stat().st_mtime_ns == written
    for revision in ("../..", "9.9.9-1"):
        with pytest.raises(StageFailure) as failure:
            fetch_here("smollm2-135m-instruct", tmp_path, revision)
        assert failure.value.patch == {"revision": None}
