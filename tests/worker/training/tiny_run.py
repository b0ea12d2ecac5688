"""A tiny random Llama, a plan of random documents, and the train stage over them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from app.jobs.spec import JobSpec
from worker.data.plan import Document, write_plan
from worker.data.spool import Spool
from worker.stages import Inputs, Outcome, Report
from worker.stages.train import run

HALTING = Path(__file__).parents[1] / "halting"
VOCABULARY = 300
STOP = 256


def save_base(folder: Path, **options: Any) -> Path:
    """A Llama of two layers in bf16, with a tokenizer of single bytes."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 256}
    model = LlamaForCausalLM(LlamaConfig(**sizes | options))
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.15)
    model.to(torch.bfloat16).save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_only = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_only, eos_token="<stop>", pad_token="<pad>")
    assert tokenizer.eos_token_id == STOP
    tokenizer.save_pretrained(folder)
    return folder


def random_documents(count: int, *, seed: int = 0, longest: int = 40) -> list[Document]:
    """Documents that repeat themselves, so that there is something to learn, and of which a random part is trained."""
    numbers = np.random.default_rng(seed)
    documents = []
    for _ in range(count):
        length = int(numbers.integers(4, longest))
        ids = np.tile(numbers.integers(0, 256, 4), length // 4 + 1)[:length]
        trained = np.arange(length) >= int(numbers.integers(1, length))
        documents.append(Document(ids, trained))
    return documents


def random_pairs(count: int, *, seed: int = 0) -> list[Document]:
    """Two answers to a prompt each time, of 1 to 20 tokens: the chosen one counts up from the prompt's first token, the
    rejected one down."""
    numbers = np.random.default_rng(seed)
    documents = []
    for _ in range(count):
        prompt = numbers.integers(0, 256, int(numbers.integers(1, 20)))
        for direction in (1, -1):
            answer = (prompt[0] + direction * np.arange(1, int(numbers.integers(2, 22)))) % 256
            documents.append(Document(np.append(prompt, answer), np.arange(len(prompt) + len(answer)) >= len(prompt)))
    return documents


def save_plan(folder: Path, documents: list[Document], **options: Any) -> Path:
    settings = {"max_seq_length": 64, "packing": True, "seed": 7} | options
    write_plan(folder, Spool.of(folder.with_suffix(".spool"), documents), **settings)
    return folder


def make_spec(more: dict[str, Any] | None = None, **training: Any) -> JobSpec:
    """`more` are other parts of the spec."""
    settings = {"max_seq_length": 64, "learning_rate": 5e-3, "max_steps": 4, "warmup_steps": 0} | training
    return JobSpec.model_validate({"base_model": "tiny", "dataset": {"file": "file-1"}, "training": settings} | (more or {}))


def make_inputs(
    folder: Path, *, documents: int = 60, pairs: int = 0, validation: bool = False, earlier: list[Path] | None = None
) -> Inputs:
    """Inputs over `folder`: the base is saved as models/tiny, the plan is written, unless they are there. With `pairs`, so many
    preferences instead of documents."""
    prepared = folder / "prepared"
    if not prepared.exists():
        save_base(folder / "models" / "tiny")
        save_plan(prepared / "plan", random_pairs(pairs) if pairs else random_documents(documents), pairs=bool(pairs))
        if validation:
            held_out = random_pairs(9, seed=1) if pairs else random_documents(9, seed=1)
            save_plan(prepared / "validation", held_out, pairs=bool(pairs))
    return Inputs(
        cache_dir=folder / "cache",
        models_dir=folder / "models",
        converter_dir=folder / "converter",
        title="tiny",
        folders={"prepare": prepared},
        values={"prepare": {"base_model": {"revision": None}, "validation": validation}},
        earlier=earlier or [],
    )


def events(attempt: Path, kind: str) -> list[dict[str, Any]]:
    lines = (attempt / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


def losses(attempt: Path) -> dict[int, float]:
    """By step."""
    return {point["step"]: point["loss"] for event in events(attempt, "metrics") for point in event["points"]}


def run_here(spec: JobSpec, inputs: Inputs, attempt: Path) -> Outcome:
    """The stage in this process."""
    (attempt / "out").mkdir(parents=True)
    return run(spec, inputs, attempt / "out", Report(attempt / "events.jsonl"))


def start(spec: JobSpec, inputs: Inputs, attempt: Path, *, halts_at: str = "") -> subprocess.Popen:
    """The stage as the supervisor starts it. It stops itself when it reports the words `halts_at`."""
    attempt.mkdir(parents=True)
    request = {"stage": "train", "spec": spec.model_dump(mode="json"), "inputs": inputs.to_json()}
    (attempt / "input.json").write_text(json.dumps(request))
    log = (attempt / "log.txt").open("w")
    command = [sys.executable, "-m", "worker.stages", str(attempt)]
    (attempt / "halts_at").write_text(halts_at)
    environment = {"HALTS_AT": str(attempt / "halts_at"), "PYTHONPATH": os.pathsep.join([str(HALTING), str(Path.cwd())])}
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=os.environ | environment
    )


def finish(process: subprocess.Popen, attempt: Path) -> dict[str, Any]:
    """The stage's result."""
    process.wait(timeout=800)
    assert (attempt / "result.json").exists(), (attempt / "log.txt").read_text()[-3000:]
    return json.loads((attempt / "result.json").read_text())
