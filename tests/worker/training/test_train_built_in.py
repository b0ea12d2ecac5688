"""Real weights: the built-in model learns a small skill on the CPU."""

import dataclasses
import json
import random

import numpy as np
import pytest
from tiny_run import events, losses, make_spec, run_here
from transformers import AutoTokenizer

from worker.data.base_models import fetch
from worker.data.plan import Document, write_plan
from worker.data.spool import Spool
from worker.stages import Inputs

pytestmark = [pytest.mark.ml, pytest.mark.timeout(1200)]


def conversation(number: int) -> tuple[str, str]:
    name = random.Random(number).choice(["ada", "grace", "alan", "edsger", "barbara"])
    question = f"badge for {name}, desk {number}"
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n", f"{name.upper()} #{number}"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Inputs:
    folder = tmp_path_factory.mktemp("built_in")
    base = fetch("smollm2-135m-instruct", None, cache_dir=folder, models_dir=None, report=lambda kind, **data: None)
    tokenizer = AutoTokenizer.from_pretrained(base.path)
    (stop,) = tokenizer("<|im_end|>")["input_ids"]

    def encode(number: int) -> Document:
        prompt, answer = (tokenizer(part)["input_ids"] for part in conversation(number))
        ids = [*prompt, *answer, stop]
        return Document(ids, np.arange(len(ids)) >= len(prompt))

    options = {"max_seq_length": 128, "packing": True, "seed": 1}
    for name, numbers in (("plan", range(100, 400)), ("validation", range(400, 420))):
        documents = Spool.of(folder / f"{name}.spool", map(encode, numbers))
        write_plan(folder / "prepared" / name, documents, **options)
    samples = []
    for number in range(400, 416):
        prompt, answer = conversation(number)
        ids = tokenizer(prompt)["input_ids"]
        samples.append({"prompt_ids": ids, "prompt": prompt, "question": prompt, "reference": answer, "stop_token_ids": [stop]})
    lines = "".join(json.dumps(sample) + "\n" for sample in samples)
    (folder / "prepared" / "validation" / "samples.jsonl").write_text(lines)
    return Inputs(
        cache_dir=folder,
        models_dir=None,
        converter_dir=folder,
        title="badges",
        folders={"prepare": folder / "prepared"},
        values={"prepare": {"base_model": {"revision": base.revision}, "validation": True}},
    )


def test_it_learns_and_says_so(tmp_path, inputs):
    more = {"base_model": "smollm2-135m-instruct", "evaluation": {"samples": 16}, "checkpoints": {"every_steps": 8}}
    spec = make_spec(more, max_seq_length=128, learning_rate=2e-3, max_steps=14, gradient_accumulation=2, warmup_steps=1)
    outcome = run_here(spec, inputs, tmp_path / "1")
    (summary,) = events(tmp_path / "1", "summary")
    assert summary["eval_loss"] < summary["eval_loss_base"] / 3
    samples = outcome.values["samples"]
    assert samples["count"] == 16
    assert samples["exact_before"] == 0
    assert samples["exact_after"] >= 10
    assert outcome.values["trainable_parameters"] == 4_884_480
    resumed = run_here(spec, dataclasses.replace(inputs, earlier=[tmp_path / "1" / "out"]), tmp_path / "2")
    assert resumed.values["resumed_from_step"] == 8
    assert losses(tmp_path / "2") == {step: loss for step, loss in losses(tmp_path / "1").items() if step > 8}
    adapters = [(tmp_path / name / "out" / "adapter" / "adapter_model.safetensors").read_bytes() for name in ("1", "2")]
    assert adapters[0] == adapters[1]
