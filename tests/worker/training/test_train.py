"""The train stage, from its inputs to its outcome."""

import dataclasses
import json
import math
import os
import signal

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny_run import STOP, events, finish, losses, make_inputs, make_spec, random_documents, run_here, start
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.jobs.states import FailureCode
from worker.stages import Report, StageFailure, StageStopped
from worker.stages.train import run

DROPOUT = {"lora": {"dropout": 0.1}}


def adapter_bytes(attempt):
    return (attempt / "out" / "adapter" / "adapter_model.safetensors").read_bytes()


def after(inputs, *attempts):
    """The inputs of an attempt that follows these, newest first."""
    return dataclasses.replace(inputs, earlier=[attempt / "out" for attempt in attempts])


def test_the_outcome_of_a_run(tmp_path):
    inputs = make_inputs(tmp_path, validation=True)
    outcome = run_here(make_spec(max_steps=12), inputs, tmp_path / "1")
    values, folder = outcome.values, tmp_path / "1" / "out" / values_folder(outcome)
    assert (values["steps"], values["total_steps"], values["resumed_from_step"]) == (12, 12, None)
    assert (values["precision"], values["attention"], values["trainable_parameters"]) == ("fp32", "sdpa", 32768)
    assert [(file.name, file.kind) for file in outcome.files] == [
        ("adapter/adapter_model.safetensors", "adapter"),
        ("adapter/adapter_config.json", "adapter"),
        ("tokenizer/tokenizer.json", "tokenizer"),
        ("tokenizer/tokenizer_config.json", "tokenizer"),
    ]
    assert (folder / "adapter_model.safetensors").stat().st_mode & 0o777 == 0o644
    assert {tensor.dtype for tensor in load_file(folder / "adapter_model.safetensors").values()} == {torch.float32}
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"
    assert config["target_modules"] == sorted(config["target_modules"])
    assert str(tmp_path) not in (folder / "adapter_config.json").read_text()
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "models" / "tiny"), folder)


def values_folder(outcome):
    return outcome.values["adapter"]


def test_what_is_reported(tmp_path):
    spec = make_spec({"evaluation": {"every_steps": 5}}, max_steps=12)
    run_here(spec, make_inputs(tmp_path, validation=True), tmp_path / "1")
    (resolved,) = events(tmp_path / "1", "resolved")
    settled = {"precision": "fp32", "memory": "speed", "optimizer": "adamw", "engine": "trl"}
    assert resolved["spec"] == {"training": settled}
    points = [point for event in events(tmp_path / "1", "metrics") for point in event["points"]]
    assert [point["step"] for point in points] == list(range(1, 13))
    assert points[-1]["loss"] < points[0]["loss"]
    assert points[0]["learning_rate"] == pytest.approx(5e-3)
    assert [point["step"] for point in points if point["eval_loss"] is not None] == [5, 10]
    assert all(point["grad_norm"] > 0 and point["tokens_per_second"] > 0 and point["reserved_bytes"] > 0 for point in points)
    last = [event for event in events(tmp_path / "1", "progress") if "step" in event][-1]
    assert (last["step"], last["total_steps"], last["percent"], last["eta_seconds"]) == (12, 12, 100.0, 0.0)
    assert last["tokens_seen"] > last["trained_tokens"] > 0
    (summary,) = events(tmp_path / "1", "summary")
    assert summary["train_loss"] == pytest.approx(sum(losses(tmp_path / "1").values()) / 12)
    assert summary["eval_loss"] < summary["eval_loss_base"]
    memory = events(tmp_path / "1", "memory")[-1]
    assert memory["device"] == "cpu"
    assert memory["device_total_bytes"] > memory["peak_reserved_bytes"] >= memory["start_reserved_bytes"] > 0
    assert memory["training_reserved_bytes"] == memory["peak_reserved_bytes"] - memory["start_reserved_bytes"]


@pytest.mark.parametrize("memory", ["speed", "balanced"])
def test_measuring_beside_training_does_not_change_it(tmp_path, memory):
    inputs = make_inputs(tmp_path, validation=True)
    spec = make_spec(DROPOUT | {"evaluation": {"every_steps": 1}}, memory=memory)
    run_here(spec, inputs, tmp_path / "1")
    run_here(
        spec, dataclasses.replace(inputs, values={"prepare": inputs.values["prepare"] | {"validation": False}}), tmp_path / "2"
    )
    assert losses(tmp_path / "1") == losses(tmp_path / "2")
    assert adapter_bytes(tmp_path / "1") == adapter_bytes(tmp_path / "2")


def test_held_out_prompts_are_answered_before_and_after(tmp_path):
    inputs = make_inputs(tmp_path, validation=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "models" / "tiny")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "models" / "tiny", dtype=torch.float32)
    prompts = [document.input_ids.tolist()[:9] for document in random_documents(6, seed=2)]
    samples = [
        {"prompt_ids": ids, "prompt": f"p{n}", "question": f"q{n}", "reference": "?!", "stop_token_ids": [STOP]}
        for n, ids in enumerate(prompts)
    ]
    lines = [json.dumps(sample) + "\n" for sample in samples]
    (inputs.folders["prepare"] / "validation" / "samples.jsonl").write_text("".join(lines))
    spec = make_spec({"evaluation": {"samples": 5}, "quantization": "none"}, max_steps=1)
    found = run_here(spec, inputs, tmp_path / "1").values["samples"]
    assert (found["count"], found["exact_before"], found["exact_after"]) == (5, 0, 0)
    for ids, row in zip(prompts, found["rows"], strict=False):
        alone = base.generate(torch.tensor([ids]), max_new_tokens=18, do_sample=False, eos_token_id=STOP, pad_token_id=STOP)
        assert row["before"] == tokenizer.decode(alone[0, len(ids) :], skip_special_tokens=True).strip()
        assert row["reference"] == "?!"
    assert [row["question"] for row in found["rows"]] == ["q0", "q1", "q2", "q3", "q4"]


def test_a_stopped_run_goes_on_in_a_new_process_to_the_same_bytes(tmp_path):
    """SIGTERM finishes the step and saves it; losses and adapter are those of a run that nobody stopped."""
    inputs = make_inputs(tmp_path)
    spec = make_spec(DROPOUT, max_steps=60, scheduler="cosine", warmup_steps=3)
    first = start(spec, inputs, tmp_path / "first", halts_at='"step": 3,')
    os.waitid(os.P_PID, first.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    first.send_signal(signal.SIGTERM)
    (tmp_path / "first" / "halts_at").write_text("")
    first.send_signal(signal.SIGCONT)
    assert finish(first, tmp_path / "first")["status"] == "stopped"
    (checkpoint,) = events(tmp_path / "first", "checkpoint")
    done = losses(tmp_path / "first")
    assert 3 <= max(done) == checkpoint["step"] < 60
    second = start(spec, after(inputs, tmp_path / "first"), tmp_path / "second")
    run_here(spec, inputs, tmp_path / "whole")
    resumed = finish(second, tmp_path / "second")
    assert resumed["status"] == "succeeded"
    assert resumed["values"]["resumed_from_step"] == max(done)
    assert min(losses(tmp_path / "second")) == max(done) + 1
    assert done | losses(tmp_path / "second") == losses(tmp_path / "whole")
    assert adapter_bytes(tmp_path / "second") == adapter_bytes(tmp_path / "whole")
    counts = [[event for event in events(tmp_path / name, "progress") if "step" in event][-1] for name in ("second", "whole")]
    assert all(counts[0][key] == counts[1][key] for key in ("tokens_seen", "trained_tokens", "epoch", "step"))
    summaries = [events(tmp_path / name, "summary")[0] for name in ("second", "whole")]
    assert summaries[0]["train_loss"] == pytest.approx(summaries[1]["train_loss"])


class StoppedReport(Report):
    """The supervisor's SIGTERM comes with a message that starts like this."""

    message = "Measuring the held-out loss of the trained"

    def __call__(self, kind, **data):
        super().__call__(kind, **data)
        if (data.get("message") or "").startswith(self.message):
            self.request_stop()


def test_a_stop_while_the_trained_model_is_measured_keeps_the_training(tmp_path):
    inputs = make_inputs(tmp_path, validation=True)
    (tmp_path / "1" / "out").mkdir(parents=True)
    with pytest.raises(StageStopped):
        run(make_spec(), inputs, tmp_path / "1" / "out", StoppedReport(tmp_path / "1" / "events.jsonl"))
    assert [event["step"] for event in events(tmp_path / "1", "checkpoint")] == [4]
    assert run_here(make_spec(), after(inputs, tmp_path / "1"), tmp_path / "2").values["resumed_from_step"] == 4


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_a_damaged_checkpoint_is_passed_over_and_the_one_before_leads_to_the_same_end(tmp_path, optimizer):
    inputs = make_inputs(tmp_path)
    spec = make_spec(DROPOUT | {"checkpoints": {"every_steps": 2, "keep": 2}}, max_steps=7, optimizer=optimizer)
    run_here(spec, inputs, tmp_path / "1")
    folder = tmp_path / "1" / "out" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step-000004", "step-000006"]
    assert [event["step"] for event in events(tmp_path / "1", "checkpoint")] == [2, 4, 6]
    (folder / "step-000006" / "optimizer.pt").write_bytes(b"half")
    outcome = run_here(spec, after(inputs, tmp_path / "1"), tmp_path / "2")
    assert outcome.values["resumed_from_step"] == 4
    assert [event["code"] for event in events(tmp_path / "2", "warning")] == ["checkpoint_skipped"]
    assert losses(tmp_path / "2") == {step: loss for step, loss in losses(tmp_path / "1").items() if step > 4}
    assert adapter_bytes(tmp_path / "2") == adapter_bytes(tmp_path / "1")


def test_a_run_whose_last_step_was_saved_only_finishes(tmp_path):
    inputs = make_inputs(tmp_path, validation=True)
    spec = make_spec({"checkpoints": {"every_steps": 2}}, max_steps=4)
    run_here(spec, inputs, tmp_path / "1")
    outcome = run_here(spec, after(inputs, tmp_path / "1"), tmp_path / "2")
    assert (outcome.values["resumed_from_step"], outcome.values["steps"]) == (4, 4)
    assert losses(tmp_path / "2") == {}
    assert adapter_bytes(tmp_path / "2") == adapter_bytes(tmp_path / "1")
    assert math.isclose(outcome.values["final_loss"], losses(tmp_path / "1")[4])
    assert events(tmp_path / "2", "summary")[0]["eval_loss"] == events(tmp_path / "1", "summary")[0]["eval_loss"]


def test_smaller_micro_batches_go_on_from_a_checkpoint_but_another_rate_does_not(tmp_path):
    inputs = make_inputs(tmp_path)
    saving = {"checkpoints": {"every_steps": 2}}
    run_here(make_spec(saving, batch_size=2, gradient_accumulation=4), inputs, tmp_path / "1")
    (tmp_path / "1" / "out" / "checkpoints" / "step-000004" / "manifest.json").unlink()
    smaller = make_spec(saving, batch_size=1, gradient_accumulation=8)
    outcome = run_here(smaller, after(inputs, tmp_path / "1"), tmp_path / "2")
    assert outcome.values["resumed_from_step"] == 2
    expected = {step: loss for step, loss in losses(tmp_path / "1").items() if step > 2}
    assert losses(tmp_path / "2") == pytest.approx(expected, rel=1e-4)
    slower = make_spec(saving, batch_size=2, gradient_accumulation=4, learning_rate=1e-3)
    assert run_here(slower, after(inputs, tmp_path / "2"), tmp_path / "3").values["resumed_from_step"] is None


def test_a_loss_that_is_no_number_ends_the_run_before_anything_is_saved(tmp_path):
    inputs = make_inputs(tmp_path)
    weights = tmp_path / "models" / "tiny" / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(StageFailure) as failure:
        run_here(make_spec({"checkpoints": {"every_steps": 1}}), inputs, tmp_path / "1")
    assert failure.value.code == FailureCode.NAN_LOSS
    assert failure.value.patch == {"training": {"learning_rate": pytest.approx(5e-4)}}
    assert not (tmp_path / "1" / "out" / "adapter").exists()
    assert events(tmp_path / "1", "checkpoint") == []


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"lora": {"target_modules": ["no_such_layer"]}}, FailureCode.INVALID_SPEC),
        ({"training": {"precision": "fp16"}}, FailureCode.INVALID_SPEC),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_base_is_loaded(tmp_path, change, code):
    with pytest.raises(StageFailure) as failure:
        run_here(make_spec(change), make_inputs(tmp_path), tmp_path / "1")
    assert failure.value.code == code
    assert failure.value.param and failure.value.patch


@pytest.mark.parametrize(
    "change",
    [{"lora": {"variant": "dora"}}, {"lora": {"variant": "rslora"}}, {"quantization": "int8"}, {"quantization": "none"}],
)
def test_variants_train(tmp_path, change):
    run_here(make_spec(change, max_steps=12), make_inputs(tmp_path), tmp_path / "1")
    found = losses(tmp_path / "1")
    assert found[12] < found[1]
