"""A real training whose process, and whose worker, are killed on the way."""

import json
import os
import signal
from pathlib import Path

import psutil
import pytest
from sqlmodel import select
from supervising import Halts, StartWorker, Supervised, wait_until

from app.jobs.states import JobStatus, Resource, Stage, StageStatus
from app.models import Checkpoint, MetricChunk
from app.reaper import Reaper

pytestmark = [pytest.mark.ml, pytest.mark.timeout(900)]

STEPS = 40
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}<stop>{% endif %}{% endfor %}"


def save_base_model(folder: Path) -> None:
    """A random Llama of two layers with a tokenizer of single bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

    alphabet = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokens = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokens.pre_tokenizer, tokens.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="<stop>", pad_token="<pad>", chat_template=TEMPLATE)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=300,
        max_position_embeddings=256, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    set_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)


def write_rows(count: int) -> bytes:
    def row(number: int) -> dict:
        turns = [("user", f"What is {number}?"), ("assistant", f"It is {number % 7}.")]
        return {"messages": [{"role": role, "content": content} for role, content in turns]}

    return b"".join(json.dumps(row(number)).encode() + b"\n" for number in range(count))


def list_checkpoints(supervised: Supervised, run_id: str) -> list[int]:
    with supervised.session() as session:
        return list(session.exec(select(Checkpoint.step).where(Checkpoint.stage_run_id == run_id)))


def find_stage(folder: Path) -> int | None:
    return next(
        (process.pid for process in psutil.process_iter(["cmdline"]) if str(folder) in (process.info["cmdline"] or [])), None
    )


def read_losses(supervised: Supervised, job_id: str) -> dict[int, float]:
    with supervised.session() as session:
        chunks = session.exec(select(MetricChunk).where(MetricChunk.job_id == job_id).order_by(MetricChunk.id))
        return {point["step"]: point["loss"] for chunk in chunks for point in chunk.points if point.get("loss") is not None}


def test_training_survives_the_death_of_its_process_and_of_its_worker(
    supervised: Supervised, start_worker: StartWorker, reaper: Reaper, halts: Halts
) -> None:
    save_base_model(supervised.scripts / "tiny")
    spec = {
        "base_model": "tiny",
        "dataset": {"file": supervised.upload(write_rows(200)).id},
        "training": {"max_steps": STEPS, "max_seq_length": 64, "learning_rate": 1e-3},
        "checkpoints": {"every_steps": 10},
    }
    job_id = supervised.submit(**spec)
    supervised.work(Resource.CPU)

    folder = supervised.storage.job_folder(job_id) / "train"
    halts.name('"kind": "checkpoint"')
    worker = start_worker("gpu")
    pid = halts.wait(folder / "1")
    wait_until(lambda: list_checkpoints(supervised, supervised.runs(job_id)[1].id))
    os.kill(pid, signal.SIGKILL)

    halts.wait(folder / "2")
    wait_until(lambda: list_checkpoints(supervised, supervised.runs(job_id)[2].id))
    halts.name("")
    worker.kill()
    wait_until(lambda: find_stage(folder / "2") is None)
    start_worker("gpu")
    wait_until(lambda: supervised.job(job_id).status.is_terminal, seconds=600)

    job = supervised.job(job_id)
    assert (job.status, job.error) == (JobStatus.SUCCEEDED, None)
    trains = [run for run in supervised.runs(job_id) if run.stage is Stage.TRAIN]
    assert [run.status for run in trains] == [StageStatus.FAILED, StageStatus.FAILED, StageStatus.SUCCEEDED]
    saved = [list_checkpoints(supervised, run.id) for run in trains]
    assert min(saved[1]) > max(saved[0]) and min(saved[2]) > max(saved[1]), "each attempt went on from the one before"
    assert job.progress and job.progress["step"] == STEPS

    whole_id = supervised.submit(**spec)
    start_worker("cpu")
    wait_until(lambda: supervised.job(whole_id).status.is_terminal, seconds=600)
    assert read_losses(supervised, job_id) == pytest.approx(read_losses(supervised, whole_id), rel=1e-4)
