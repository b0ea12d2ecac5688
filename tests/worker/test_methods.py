"""Jobs of every method but the first, from the upload to their last artifact, through real stages on a CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from gguf import GGUFReader
from starlette.testclient import TestClient
from supervising import Supervised

pytestmark = [pytest.mark.ml, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]


@pytest.fixture
def base(supervised: Supervised, monkeypatch: pytest.MonkeyPatch) -> str:
    """A random Llama of two layers with the built-in model's tokenizer, which the converter knows."""
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    from worker.data import built_in_model
    from worker.data.gguf_weights import read_gguf

    monkeypatch.delenv("PYTHONPATH")
    folder = supervised.scripts / "tiny"
    folder.mkdir()
    metadata, _ = read_gguf(built_in_model.source_file())
    for name, content in built_in_model.json_files(metadata).items():
        (folder / name).write_text(json.dumps(content))
    (folder / "chat_template.jinja").write_text(metadata["tokenizer.chat_template"])
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16}
    config = LlamaConfig.from_pretrained(folder)
    config.update(sizes | {"num_key_value_heads": 2})
    set_seed(0)
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    return folder.name


def run_job(client: TestClient, supervised: Supervised, rows: list[dict], **spec) -> dict:
    """The job as the API shows it once workers have nothing left to do."""
    content = "".join(json.dumps(row) + "\n" for row in rows)
    file = client.post("/v1/files", files={"file": ("rows.jsonl", content)}, data={"purpose": "fine-tune"}).json()
    supervised.work()
    answer = client.post("/v1/jobs", json=spec | {"dataset": {"file": file["id"]} | spec["dataset"]})
    assert answer.status_code == 201, answer.text
    supervised.work()
    job = client.get(answer.headers["location"]).json()
    assert job["status"] == "succeeded", job["error"]
    return job


def test_preferences_move_the_margin_and_end_in_a_gguf(
    supervised: Supervised, base: str, client: TestClient, tmp_path: Path
) -> None:
    rows = [{"prompt": f"What is {n}?", "chosen": f"It is {n}, sir.", "rejected": f"No idea about {n}!"} for n in range(40)]
    job = run_job(
        client,
        supervised,
        rows,
        base_model=base,
        name="polite",
        method="dpo",
        preference={"beta": 0.2},
        dataset={"validation_fraction": 0.2},
        training={"max_steps": 12, "learning_rate": 1e-2, "max_seq_length": 128},
        exports=[{"kind": "gguf"}],
    )
    points = client.get(f"/v1/jobs/{job['id']}/metrics").json()["data"]
    assert [point["step"] for point in points] == list(range(1, 13))
    assert (points[0]["reward_margin"], points[0]["reward_accuracy"]) == (0.0, 0.5)
    assert points[-1]["reward_margin"] > 1.0
    assert points[-1]["loss"] < points[0]["loss"]
    metrics = job["metrics"]
    assert metrics["eval_reward_margin"] > 1.0 > metrics["eval_reward_margin_base"] == 0.0
    assert metrics["eval_reward_accuracy"] == 1.0
    assert metrics["eval_loss"] < metrics["eval_loss_base"]
    assert (job["data"]["rows"], job["data"]["packed_rows"]) == (32, 32)
    report = client.get(f"/v1/jobs/{job['id']}/report").text
    assert "Reward margin" in report

    [artifact] = [entry for entry in job["artifacts"] if entry["kind"] == "gguf"]
    path = tmp_path / "polite.gguf"
    path.write_bytes(client.get(f"/v1/jobs/{job['id']}/artifacts/{artifact['name']}").content)
    assert GGUFReader(path).get_field("general.name").contents() == "polite"
    subprocess.run([sys.executable, ROOT / "examples/ask.py", path, "What is 3?", "--max-tokens", "4"], check=True)


def test_texts_and_conversations_are_learned_whole(supervised: Supervised, base: str, client: TestClient) -> None:
    texts = [{"text": f"{n} is followed by {n + 1}. " * 20} for n in range(8)]
    chats = [{"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "Yes."}]} for n in range(8)]
    for rows, split in ((texts, True), (chats, False)):
        job = run_job(
            client,
            supervised,
            rows,
            base_model=base,
            method="cpt",
            dataset={},
            training={"max_steps": 6, "learning_rate": 1e-2, "max_seq_length": 64},
            exports=[{"kind": "adapter"}],
        )
        report = client.get(f"/v1/jobs/{job['id']}/report", headers={"accept": "application/json"}).json()
        data = job["data"]
        [documents, rows_split] = [report["setup"]["data_report"][name] for name in ("documents", "rows_split")]
        assert data["trained_tokens"] == data["tokens"] - documents
        assert (data["rows_cut"], rows_split) == (0, 8 * split)
        points = client.get(f"/v1/jobs/{job['id']}/metrics").json()["data"]
        assert points[-1]["loss"] < points[0]["loss"]
