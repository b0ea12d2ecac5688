"""A run that starts from the adapter of another one."""

import dataclasses
import json

import pytest
from safetensors.torch import load_file, save_file
from tiny_run import events, losses, make_inputs, make_spec, run_here

from app.jobs.states import FailureCode
from worker.stages import StageFailure

SAVING = {"lora": {"dropout": 0.1}, "checkpoints": {"every_steps": 2, "keep": 9}}
GOING_ON = SAVING | {"from_job": "job_1"}


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """The inputs of a run that starts from a trained adapter, and the attempt that trained it."""
    folder = tmp_path_factory.mktemp("earlier")
    inputs = make_inputs(folder, validation=True)
    run_here(make_spec(SAVING, max_steps=8), inputs, folder / "1")
    return dataclasses.replace(inputs, adapter=folder / "1" / "out" / "adapter"), folder / "1"


def summary(attempt):
    return events(attempt, "summary")[-1]


def test_it_begins_where_the_other_ended(earlier, tmp_path):
    inputs, before = earlier
    standing = run_here(make_spec(GOING_ON, max_steps=1, learning_rate=1e-12), inputs, tmp_path / "1")
    assert summary(tmp_path / "1")["eval_loss"] == pytest.approx(summary(before)["eval_loss"], rel=1e-6)
    assert summary(tmp_path / "1")["eval_loss_base"] == pytest.approx(summary(before)["eval_loss_base"])
    assert standing.values["from_job"]["id"] == "job_1"
    assert len(standing.values["from_job"]["adapter_sha256"]) == 64
    run_here(make_spec(GOING_ON, max_steps=6), inputs, tmp_path / "2")
    assert losses(tmp_path / "2")[1] < losses(before)[1]
    assert (
        run_here(make_spec(max_steps=1), dataclasses.replace(inputs, adapter=None), tmp_path / "3").values["from_job"] is None
    )


def test_after_a_stop_it_goes_on_to_the_same_bytes_and_only_from_the_same_adapter(earlier, tmp_path):
    inputs, _ = earlier
    spec = make_spec(GOING_ON, max_steps=5)
    run_here(spec, inputs, tmp_path / "1")
    after = dataclasses.replace(inputs, earlier=[tmp_path / "1" / "out"])
    assert run_here(spec, after, tmp_path / "2").values["resumed_from_step"] == 4
    first, second = ((tmp_path / name / "out" / "adapter" / "adapter_model.safetensors").read_bytes() for name in "12")
    assert first == second
    other = dataclasses.replace(after, adapter=tmp_path / "1" / "out" / "adapter")
    assert run_here(spec, other, tmp_path / "3").values["resumed_from_step"] is None
    assert {change["item"] for event in events(tmp_path / "3", "warning") for change in event["changes"]} == {"from_job"}


def test_an_adapter_of_another_shape_is_refused_before_the_first_step(earlier, tmp_path):
    inputs, before = earlier
    folder = tmp_path / "adapter"
    folder.mkdir()
    tensors = load_file(before / "out" / "adapter" / "adapter_model.safetensors")
    save_file(dict(list(tensors.items())[1:]), folder / "adapter_model.safetensors")
    with pytest.raises(StageFailure, match="job_1") as failure:
        run_here(make_spec(GOING_ON), dataclasses.replace(inputs, adapter=folder), tmp_path / "1")
    assert (failure.value.code, failure.value.param) == (FailureCode.INVALID_SPEC, "from_job")
    assert not losses(tmp_path / "1")


def test_the_inputs_carry_it(earlier):
    inputs, before = earlier
    assert type(inputs).from_json(json.loads(json.dumps(inputs.to_json())), {}).adapter == before / "out" / "adapter"
