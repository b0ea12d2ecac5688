"""The first stage of a job that exports a checkpoint."""

import json

import pytest
from transformers import AutoTokenizer

from app.jobs.spec import JobSpec
from worker.data.base_models import fetch
from worker.stages import Inputs, Report, StageFailure
from worker.stages.prepare import run
from worker.training import checkpoints

ROW = {"conversations": [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "It is that."}]}
ASKED = [{"role": "user", "content": "What is it?"}]


@pytest.fixture
def checkpoint(tmp_path, models_dir):
    """One of step 7 as training writes it, on the base model as it is here."""
    base = fetch("small", None, cache_dir=tmp_path, models_dir=models_dir, token=None, report=lambda *_, **__: None)

    def fill(folder):
        (folder / "adapter_model.safetensors").write_bytes(b"weights")
        (folder / "adapter_config.json").write_text(json.dumps({"revision": base.revision}))
        (folder / "optimizer.pt").write_bytes(b"moments")

    return checkpoints.write(tmp_path / "checkpoints", 7, fill, lock={}).path


@pytest.fixture
def prepare(tmp_path, models_dir, checkpoint):
    def prepare(*kinds):
        file = tmp_path / "blob"
        file.write_text(json.dumps(ROW) + "\n")
        (out := tmp_path / "attempt" / "out").mkdir(parents=True)
        spec = JobSpec.model_validate(
            {
                "base_model": "small",
                "dataset": {"file": "file-1"},
                "exports": [{"kind": kind} for kind in kinds],
                "evaluation": {"every_steps": 5},
                "from_job": "job_1",
                "from_checkpoint": "ckpt_1",
            }
        )
        places = {"cache_dir": tmp_path, "models_dir": models_dir, "converter_dir": tmp_path}
        inputs = Inputs(**places, title="job", file=file, filename="rows.jsonl", adapter=checkpoint)
        return run(spec, inputs, out, Report(tmp_path / "attempt" / "events.jsonl")), out

    return prepare


def test_the_adapter_of_the_checkpoint_is_taken_and_stays_when_the_checkpoint_goes(prepare, checkpoint):
    outcome, out = prepare("adapter")
    adapter, tokenizer = outcome.files[:2], outcome.files[2:]
    assert [file.name for file in adapter] == ["adapter/adapter_model.safetensors", "adapter/adapter_config.json"]
    assert ("tokenizer/tokenizer.json", "tokenizer") in [(file.name, file.kind) for file in tokenizer]
    asked = AutoTokenizer.from_pretrained(out / "tokenizer").apply_chat_template(
        ASKED, add_generation_prompt=True, tokenize=False
    )
    assert asked.endswith("What is it?<|im_end|>\n<|im_start|>assistant\n")
    taken = outcome.values["train"]
    assert (taken["adapter"], taken["steps"]) == ("adapter", 7)
    assert taken["from_checkpoint"] == {"id": "ckpt_1", "job": "job_1", "adapter_sha256": outcome.files[0].sha256}
    for path in checkpoint.iterdir():
        path.unlink()
    assert (out / "adapter" / "adapter_model.safetensors").read_bytes() == b"weights"
    assert sorted(path.name for path in (out / "adapter").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert (out / "plan").exists()


def test_an_adapter_that_is_not_to_be_exported_is_there_for_the_later_stages_only(prepare):
    outcome, out = prepare("merged")
    assert {file.kind for file in outcome.files} == {"tokenizer"}
    assert (out / "adapter" / "adapter_model.safetensors").exists()


def test_a_damaged_checkpoint_is_refused(prepare, checkpoint):
    (checkpoint / "adapter_model.safetensors").write_bytes(b"changed")
    with pytest.raises(StageFailure) as caught:
        prepare("adapter")
    assert (caught.value.code, caught.value.param) == ("invalid_spec", "from_checkpoint")
    assert "adapter_model.safetensors" in caught.value.message
