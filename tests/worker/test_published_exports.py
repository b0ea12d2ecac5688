"""A model trained, exported from its checkpoint by another job, verified and published, through real stages on a CPU."""

import hashlib
import json

import pytest
from hub_server import HubServer
from starlette.testclient import TestClient
from supervising import Supervised
from test_methods import base, run_job  # noqa: F401

pytestmark = [pytest.mark.ml, pytest.mark.timeout(900)]

ROWS = [{"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}!"}]} for n in range(24)]


def test_a_checkpoint_ends_as_an_adapter_and_a_gguf_at_the_hub(
    supervised: Supervised,
    base: str,  # noqa: F811
    client: TestClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    training = {"max_steps": 4, "learning_rate": 1e-2, "max_seq_length": 64}
    shared = {"base_model": base, "dataset": {"validation_fraction": 0.25}}
    source = run_job(
        client, supervised, ROWS, **shared, training=training, checkpoints={"every_steps": 2}, exports=[{"kind": "adapter"}]
    )
    [_, checkpoint] = [each for each in client.get(f"/v1/jobs/{source['id']}/checkpoints").json()["data"] if each["resumable"]]
    assert client.put("/v1/secrets/hf", json={"value": "hf_writer"}).status_code == 200
    with HubServer() as hub:
        hub.enrol("hf_writer", name="me", role="write")
        for name, value in hub.environment.items():
            monkeypatch.setenv(name, value)
        spec = {
            "base_model": base,
            "dataset": {"file": source["spec"]["dataset"]["file"]},
            "from_checkpoint": checkpoint["id"],
            "name": "counting",
            "exports": [{"kind": "adapter"}, {"kind": "gguf"}, {"kind": "lora_gguf"}],
            "publish": [
                {"repo": "me/counting", "artifacts": ["adapter"], "token": "secret:hf"},
                {"repo": "me/counting-GGUF", "artifacts": ["gguf", "lora_gguf"], "token": "secret:hf"},
            ],
        }
        answer = client.post("/v1/jobs", json=spec)
        assert answer.status_code == 201, answer.text
        supervised.work()
        job = client.get(answer.headers["location"]).json()
        assert job["status"] == "succeeded", job["error"]
        assert "train" not in [stage["name"] for stage in job["stages"]]
        made = {artifact["name"]: artifact for artifact in job["artifacts"]}
        trained = {artifact["name"]: artifact for artifact in source["artifacts"]}
        name = "adapter/adapter_model.safetensors"
        assert made[name]["sha256"] == trained[name]["sha256"]
        adapter = hub.head("me/counting")["adapter_model.safetensors"]
        assert hashlib.sha256(adapter).hexdigest() == made[name]["sha256"]
        gguf = hub.head("me/counting-GGUF")
        artifact = made["gguf/counting-q8_0.gguf"]
        assert hashlib.sha256(gguf["counting-q8_0.gguf"]).hexdigest() == artifact["sha256"]
        lora = hashlib.sha256(gguf["counting-lora-f16.gguf"]).hexdigest()
        assert lora == made["lora_gguf/counting-lora-f16.gguf"]["sha256"]
        assert f"{artifact['verification']['kl']:.4g}" in gguf["README.md"].decode()
    report = client.get(f"/v1/jobs/{job['id']}/report", headers={"accept": "application/json"}).json()
    assert [entry["repo"] for entry in report["outcomes"]["published"]] == ["me/counting", "me/counting-GGUF"]
    assert report["setup"]["from_checkpoint"] == checkpoint["id"]
    assert json.dumps(report).count("hf_writer") == 0
