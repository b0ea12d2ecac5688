"""A data folder on a small disk that is filled during the upload, the training, the merge and the conversion in turn."""

import hashlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_disk import fill, mounted
from starlette.testclient import TestClient
from supervising import Halts, Supervised, wait_until
from test_interrupted_training import write_rows

from app.jobs.states import Resource, Stage
from app.reserve import RESERVE_BYTES
from app.settings import Settings
from worker.data import built_in_model
from worker.data.gguf_weights import read_gguf
from worker.runner import work

pytestmark = [pytest.mark.ml, pytest.mark.timeout(900)]

DISK_BYTES = 160 << 20
LEFT_BYTES = 3 << 19
"""Enough for the database, and less than any stage writes."""


@pytest.fixture
def settings(environment: None, migrated_database: Path, tmp_path: Path) -> Iterator[Settings]:
    with mounted(tmp_path / "data", DISK_BYTES) as folder:
        shutil.copy(migrated_database, folder)
        yield Settings(reaper_seconds=0.3)


def save_base_model(folder: Path) -> None:
    """A random Llama of three million weights with the built-in model's tokenizer, which the converter knows."""

    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    metadata, _ = read_gguf(built_in_model.source_file())
    folder.mkdir()
    for name, content in built_in_model.json_files(metadata).items():
        (folder / name).write_text(json.dumps(content))
    (folder / "chat_template.jinja").write_text(metadata["tokenizer.chat_template"])
    config = LlamaConfig.from_pretrained(folder)
    config.update({"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4})
    config.update({"num_key_value_heads": 2, "head_dim": 16})
    set_seed(0)
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)


def fill_but_little(root: Path) -> Path:
    """Also what the database's reserve held, which is taken away while there is too much room for anybody to give it up, and
    too little for the reaper to make another: the system frees the room of a file some time after its name has gone."""
    wait_until((root / "reserve").exists)
    fill(root, leaving=RESERVE_BYTES)
    (root / "reserve").unlink()
    filler = fill(root)
    os.truncate(filler, filler.stat().st_size - LEFT_BYTES)
    return filler


@pytest.mark.provokes("disk_full")
def test_a_full_disk_fails_each_stage_and_its_retry_succeeds(
    client: TestClient, supervised: Supervised, settings: Settings, halts: Halts
) -> None:
    save_base_model(supervised.scripts / "tiny")
    wait_until((settings.root / "reserve").exists)
    form: dict[str, Any] = {"data": {"purpose": "fine-tune"}, "files": {"file": ("rows.jsonl", write_rows(20_000))}}
    filler = fill(settings.root)
    refused = client.post("/v1/files", **form)
    assert (refused.status_code, refused.json()["error"]["code"]) == (507, "disk_full")
    assert not list((settings.root / "uploads").glob("*"))
    filler.unlink()
    file_id = client.post("/v1/files", **form).json()["id"]
    spec = {
        "base_model": "tiny",
        "dataset": {"file": file_id, "max_samples": 200},
        "training": {"max_steps": 16, "max_seq_length": 64, "learning_rate": 1e-3},
        "lora": {"r": 256, "alpha": 16},
        "checkpoints": {"every_steps": 4},
        "exports": [{"kind": "adapter"}, {"kind": "merged"}, {"kind": "gguf", "quantization": "q8_0"}],
    }
    job_id = client.post("/v1/jobs", json=spec).json()["id"]
    supervised.work(Resource.CPU)
    turns = [
        (Stage.TRAIN, Resource.GPU, '"kind": "checkpoint"'),
        (Stage.MERGE, Resource.CPU, "/model.safetensors"),
        (Stage.CONVERT, Resource.CPU, ".gguf"),
    ]
    for stage, resource, moment in turns:
        attempt = supervised.storage.attempt_folder(job_id, stage, 1)
        halts.name(moment)
        worker = threading.Thread(target=work, args=[supervised.runner, resource])
        worker.start()
        pid = halts.wait(attempt)
        halts.name("")
        filler = fill_but_little(settings.root)
        os.kill(pid, signal.SIGCONT)
        worker.join(600)
        check_failure(client, job_id, stage, attempt)
        filler.unlink()
        retried = client.post(f"/v1/jobs/{job_id}/retry")
        assert (retried.status_code, retried.json()["stage"]) == (202, stage)
        if stage is Stage.TRAIN:
            supervised.work(Resource.GPU)
    supervised.work()
    job = client.get(f"/v1/jobs/{job_id}").json()
    assert (job["status"], job["error"]) == ("succeeded", None)
    kinds = {artifact["kind"] for artifact in job["artifacts"]}
    assert kinds == {"adapter", "merged", "gguf", "modelfile", "tokenizer", "manifest", "receipt"}
    trains = [run for run in supervised.runs(job_id) if run.stage is Stage.TRAIN]
    assert trains[1].outputs and trains[1].outputs["values"]["resumed_from_step"] >= 4
    check_artifacts(client, job_id)


def check_failure(client: TestClient, job_id: str, stage: Stage, attempt: Path) -> None:
    """The job failed for this reason, all that was there before still is, and nothing partial."""
    job = client.get(f"/v1/jobs/{job_id}").json()
    assert (job["status"], job["stage"], job["error"] and job["error"]["code"]) == ("failed", stage, "disk_full"), job["error"]
    left = {path.name for path in attempt.rglob("*") if not path.is_dir()} - {"log.txt"}
    checkpoints = client.get(f"/v1/jobs/{job_id}/checkpoints").json()["data"]
    assert any(checkpoint["resumable"] for checkpoint in checkpoints)
    assert not left if stage is not Stage.TRAIN else not list(attempt.rglob(".*"))
    assert client.get(f"/v1/jobs/{job_id}/logs").status_code == 200
    check_artifacts(client, job_id)


def check_artifacts(client: TestClient, job_id: str) -> None:
    for artifact in client.get(f"/v1/jobs/{job_id}/artifacts").json()["data"]:
        content = client.get(f"/v1/jobs/{job_id}/artifacts/{artifact['name']}").content
        assert hashlib.sha256(content).hexdigest() == artifact["sha256"]
