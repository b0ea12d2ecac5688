"""Stages that are killed in the middle of a write: each goes on, and nobody ever reads half of anything."""

import hashlib
import json
import os
import shutil
import threading
from glob import glob
from pathlib import Path

import pytest
from sqlmodel import select
from supervising import Supervised
from test_interrupted_training import TEMPLATE, write_rows

from app.jobs.spec import BUILT_IN_MODEL
from app.jobs.states import JobStatus, Stage, StageStatus
from app.models import Artifact
from worker.data import base_models

pytestmark = [pytest.mark.ml, pytest.mark.timeout(900)]

SPEC = {
    "base_model": "tiny",
    "lora": {"r": 64},
    "training": {"max_steps": 12, "batch_size": 1, "gradient_accumulation": 1, "max_seq_length": 64},
    "checkpoints": {"every_steps": 1},
    "exports": [{"kind": "adapter"}, {"kind": "merged"}, {"kind": "gguf", "quantization": "q8_0"}],
}


def save_base(folder: Path, cache: Path) -> None:
    """A random Llama with the built-in model's tokenizer, large enough for its files to take a while."""
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    built_in = base_models.fetch(BUILT_IN_MODEL, None, cache_dir=cache, models_dir=None, report=lambda *_, **__: None).path
    shutil.copytree(built_in, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "chat_template.jinja").write_text(TEMPLATE.replace("<stop>", "<|im_end|>"))
    config = LlamaConfig.from_pretrained(built_in)
    config.update({"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 8})
    config.update({"num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": False})
    set_seed(0)
    LlamaForCausalLM(config).half().save_pretrained(folder, max_shard_size="40MB")


class Reader(threading.Thread):
    """Reads again and again what has a final name: checkpoints, blobs, and the blobs of published artifacts."""

    def __init__(self, supervised: Supervised, job_id: str):
        super().__init__()
        self.supervised, self.root, self.job_id = supervised, supervised.storage.root, job_id
        self.broken: list[str] = []
        self.read: set[str] = set()
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.is_set():
            self.look()

    def look(self) -> None:
        for path in self.find("jobs/*/train/*/out/checkpoints/step-*"):
            if str(path) not in self.read and self.check_checkpoint(path):
                self.read.add(str(path))
        for path in self.find("blobs/*/*"):
            if str(path) not in self.read and self.check(path, path.name):
                self.read.add(str(path))
        with self.supervised.session() as session:
            for artifact in session.exec(select(Artifact).where(Artifact.job_id == self.job_id)):
                blob = self.supervised.storage.blob(artifact.blob_sha256)
                if artifact.id not in self.read and self.check(blob, artifact.blob_sha256):
                    self.read.add(artifact.id)

    def find(self, pattern: str) -> list[Path]:
        """As `Path.glob`, which raises when a folder goes between the look for it and the look into it."""
        return [self.root / name for name in glob(pattern, root_dir=self.root)]  # noqa: PTH207

    def check_checkpoint(self, path: Path) -> bool:
        try:
            files = json.loads((path / "manifest.json").read_text())["files"]
        except OSError:
            files = {"manifest.json": {"sha256": ""}} if path.exists() else {}  # else it was just removed
        return all(self.check(path / name, facts["sha256"], folder=path) for name, facts in files.items())

    def check(self, path: Path, sha256: str, folder: Path | None = None) -> bool:
        try:
            whole = hashlib.sha256(path.read_bytes()).hexdigest() == sha256
        except OSError:
            whole = False
        if not whole and (folder or path).exists():
            self.broken.append(str(path))
        return whole


def test_each_goes_on_and_nobody_reads_half_of_it(supervised: Supervised, monkeypatch: pytest.MonkeyPatch) -> None:
    save_base(supervised.scripts / "tiny", supervised.settings.cache_dir)
    last = max((supervised.scripts / "tiny").glob("model-*.safetensors"))
    moments = {
        Stage.TRAIN: (".part-000004/", 6_000_000),  # more than an adapter of this size takes, and less than its optimizer
        Stage.MERGE: (f"/merged/{last.name}", last.stat().st_size // 2),
        Stage.CONVERT: ("/out/gguf/", 20_000_000),
    }
    monkeypatch.setenv("DIES_WRITING", json.dumps(moments))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent / "dying"), str(Path.cwd())]))
    job_id = supervised.submit(**SPEC, dataset={"file": supervised.upload(write_rows(40)).id})
    reader = Reader(supervised, job_id)
    reader.start()
    try:
        supervised.work()
    finally:
        reader.stopped.set()
        reader.join()

    job = supervised.job(job_id)
    assert (job.status, job.error) == (JobStatus.SUCCEEDED, None)
    for stage in (Stage.TRAIN, Stage.MERGE, Stage.CONVERT):
        runs = [run for run in supervised.runs(job_id) if run.stage is stage]
        assert [run.status for run in runs] == [StageStatus.FAILED, StageStatus.SUCCEEDED], stage
        assert "SIGXFSZ" in (runs[0].error or {})["message"]
    reader.look()
    assert reader.broken == []
    assert sum("checkpoints" in name for name in reader.read) > 3
    kinds = {"adapter", "merged", "gguf", "modelfile", "tokenizer", "manifest", "receipt"}
    assert check_artifacts(supervised, job_id) == kinds

    whole_id = supervised.submit(**SPEC, dataset={"file": supervised.upload(write_rows(40)).id})
    monkeypatch.setenv("DIES_WRITING", "{}")
    supervised.work()
    assert hashes(supervised, whole_id) == hashes(supervised, job_id), "as if nobody had been killed"
    assert len(hashes(supervised, job_id)) > 2


def check_artifacts(supervised: Supervised, job_id: str) -> set[str]:
    with supervised.session() as session:
        artifacts = list(session.exec(select(Artifact).where(Artifact.job_id == job_id)))
    for artifact in artifacts:
        blob = supervised.storage.blob(artifact.blob_sha256).read_bytes()
        assert hashlib.sha256(blob).hexdigest() == artifact.blob_sha256
    return {artifact.kind for artifact in artifacts}


def hashes(supervised: Supervised, job_id: str) -> dict[str, str]:
    """Of the weights, by name. The other files have the job's own name in them."""
    with supervised.session() as session:
        artifacts = session.exec(select(Artifact).where(Artifact.job_id == job_id))
        return {artifact.name: artifact.blob_sha256 for artifact in artifacts if artifact.name.endswith(".safetensors")}
