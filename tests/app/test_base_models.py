"""Base models of the hub, checked against a hub of the test's own."""

import json
import os
import subprocess
import sys

import pytest
from hub_server import HubServer


@pytest.fixture
def hub():
    with HubServer() as server:
        server.add("models", "good/model", {"config.json": b'{"model_type": "llama"}'})
        server.add("models", "good/packed", {"config.json": b'{"quantization_config": {"quant_method": "gptq"}}'})
        server.add("models", "good/empty", {"README.md": b"x"})
        server.add("models", "good/gated", {"config.json": b"{}"}, gated=True, readers={"hf_friend"})
        server.add("models", "good/hidden", {"config.json": b"{}"}, private=True, readers={"hf_friend"})
        server.add("models", "good/ill", {"config.json": b"{}"})
        server.befall("good/ill", status=500)
        yield server


CODE = """
import json, sys
from app import hub
from app.base_models import catalog
from app.settings import Settings
hub.TIMEOUT_SECONDS = 120  # a slow machine's hub is there, too
problems = [catalog.check(repo, revision, Settings(), token) for repo, revision, token in json.loads(sys.argv[1])]
print(json.dumps([problem and [problem.param, problem.code] for problem in problems]))
"""


DATA_SETS = CODE.replace("catalog.check(repo, revision, Settings(), token)", "hub.check_data_set(repo, revision, token)")


def check(environment, *models, code=CODE):
    """In a fresh interpreter, because huggingface_hub reads its endpoint when it is imported."""
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(models)], capture_output=True, text=True, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_model_is_looked_up_and_refused_for_what_the_hub_says(hub):
    asked = {
        ("good/model", None, None): None,
        ("good/model", "v9", None): ["revision", "model_not_found"],
        ("good/packed", None, None): ["base_model", "model_unsupported"],
        ("good/gated", None, None): ["base_model", "model_gated"],
        ("good/gated", None, "hf_reader"): ["base_model", "model_gated"],
        ("good/gated", None, "hf_friend"): None,
        ("good/hidden", None, None): ["base_model", "model_not_found"],
        ("good/hidden", None, "hf_friend"): None,
        ("good/model", None, "hf_wrong"): ["hub_token", "hub_unauthorized"],
        ("good/none", None, None): ["base_model", "model_not_found"],
        ("good/empty", None, None): ["base_model", "model_unsupported"],
        ("good/ill", None, None): None,
    }
    assert check(hub.environment, *asked) == list(asked.values())


def test_a_data_set_is_looked_up_and_refused_for_what_the_hub_says(hub):
    hub.add("datasets", "good/rows", {"train.jsonl": b"{}"})
    hub.add("datasets", "good/gated", {"train.jsonl": b"{}"}, gated=True, readers={"hf_friend"})
    hub.add("datasets", "good/hidden", {"train.jsonl": b"{}"}, private=True, readers={"hf_friend"})
    asked = {
        ("good/rows", None, None): None,
        ("good/rows", "v9", None): ["dataset.hub.revision", "dataset_not_found"],
        ("good/gated", None, None): ["dataset.hub.repo", "hub_unauthorized"],
        ("good/gated", None, "hf_reader"): ["dataset.hub.repo", "hub_unauthorized"],
        ("good/gated", None, "hf_friend"): None,
        ("good/hidden", None, None): ["dataset.hub.repo", "dataset_not_found"],
        ("good/hidden", None, "hf_friend"): None,
        ("good/rows", None, "hf_wrong"): ["hub_token", "hub_unauthorized"],
    }
    assert check(hub.environment, *asked, code=DATA_SETS) == list(asked.values())


def test_a_hub_that_does_not_answer_is_asked_once_and_believed_to_have_the_model(hub):
    assert check(hub.environment | {"HF_ENDPOINT": "http://127.0.0.1:1"}, ("good/model", None, None)) == [None]


def test_an_offline_service_asks_nobody(hub):
    assert check(hub.environment | {"HF_HUB_OFFLINE": "1"}, ("good/none", None, None)) == [None]
    assert hub.requests == []
