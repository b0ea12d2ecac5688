"""A run that goes on makes the bytes that an undisturbed run makes, whatever happened to its checkpoints."""

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_run import events, losses, make_inputs, make_spec, random_documents, run_here, save_plan

from worker.training import checkpoints
from worker.training.trl_engine import PlanTrainer

SAVING = {"lora": {"dropout": 0.1}, "checkpoints": {"every_steps": 2, "keep": 2}}
SPEC = make_spec(SAVING, max_steps=7, scheduler="cosine", warmup_steps=2)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The inputs of a run, and the attempt that made it, with checkpoints at steps 4 and 6."""
    folder = tmp_path_factory.mktemp("undisturbed")
    inputs = make_inputs(folder)
    run_here(SPEC, inputs, folder / "1")
    return inputs, folder / "1"


@pytest.fixture
def attempt(undisturbed, tmp_path):
    """A copy of that attempt to damage."""
    shutil.copytree(undisturbed[1], tmp_path / "1")
    return tmp_path / "1"


def adapter_hash(attempt):
    return hashlib.sha256((attempt / "out" / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def go_on(undisturbed, attempt, spec=SPEC):
    """The outcome of an attempt after `attempt`, in the folder beside it, and its warnings."""
    following = attempt.with_name("following")
    outcome = run_here(spec, dataclasses.replace(undisturbed[0], earlier=[attempt / "out"]), following)
    return outcome.values["resumed_from_step"], following, events(following, "warning")


def rewrite(path, change):
    """Changes a file of a checkpoint so that the manifest still describes it: what only loading can find."""
    change(path)
    manifest = path.parent / "manifest.json"
    facts = json.loads(manifest.read_text())
    facts["files"].pop(path.name)
    if path.exists():
        facts["files"][path.name] = checkpoints.describe(path)
    manifest.write_text(json.dumps(facts))


def change_saved(change):
    def apply(path):
        saved = torch.load(path, weights_only=False)
        torch.save(change(saved) or saved, path)

    return apply


def change_json(**fields):
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def transpose(state):
    for moments in state["state"].values():
        moments["exp_avg"] = moments["exp_avg"].T.contiguous()


def forget(state):
    state["state"].popitem()


def drop_group(state):
    state["param_groups"][0]["params"].pop()


def half_adapter(path):
    tensors = load_file(path)
    save_file(dict(list(tensors.items())[::2]), path)


def transposed_adapter(path):
    save_file({name: tensor.T.contiguous() for name, tensor in load_file(path).items()}, path)


class Payload:
    def __reduce__(self):
        return os.mkdir, ("payload-ran",)


UNFIT = [
    ("optimizer.pt", change_saved(transpose)),
    ("optimizer.pt", change_saved(forget)),
    ("optimizer.pt", change_saved(drop_group)),
    ("optimizer.pt", change_saved(lambda state: {"state": {}, "param_groups": []})),
    ("optimizer.pt", lambda path: path.write_bytes(b"no archive")),
    ("optimizer.pt", change_saved(lambda state: {"state": Payload()})),
    ("scheduler.pt", change_saved(lambda state: [1, 2])),
    ("scheduler.pt", change_saved(lambda state: state | {"last_epoch": 99})),
    ("rng_state.pth", change_saved(lambda state: {"python": state["python"]})),
    ("rng_state.pth", change_saved(lambda state: state | {"cpu": state["cpu"][:100].clone()})),
    ("adapter_model.safetensors", half_adapter),
    ("adapter_model.safetensors", transposed_adapter),
    ("adapter_model.safetensors", lambda path: path.write_bytes(b"{}")),
    ("trainer_state.json", change_json(global_step=5)),
    ("trainer_state.json", lambda path: path.write_text("[]")),
    ("counters.json", change_json(rows=3)),
    ("counters.json", change_json(unknown=1)),
    ("scheduler.pt", lambda path: path.unlink()),
    ("optimizer.pt", lambda path: path.unlink()),
]


@pytest.mark.parametrize(("name", "change"), UNFIT, ids=[f"{name}-{number}" for number, (name, _) in enumerate(UNFIT)])
def test_what_loads_but_does_not_fit_is_passed_over_for_the_one_before(undisturbed, attempt, name, change):
    rewrite(attempt / "out" / "checkpoints" / "step-000006" / name, change)
    step, following, (warning,) = go_on(undisturbed, attempt)
    assert step == 4
    assert (warning["code"], warning["reason"]) == ("checkpoint_skipped", "unfit")
    assert warning["checkpoint"] == "step-000006"
    assert adapter_hash(following) == adapter_hash(undisturbed[1])
    assert not Path("payload-ran").exists()


def test_with_no_checkpoint_that_fits_the_run_starts_anew(undisturbed, attempt):
    folder = attempt / "out" / "checkpoints"
    rewrite(folder / "step-000006" / "optimizer.pt", change_saved(transpose))
    rewrite(folder / "step-000004" / "rng_state.pth", change_saved(lambda state: {"cpu": None}))
    step, following, warnings = go_on(undisturbed, attempt)
    assert step is None
    assert [warning["checkpoint"] for warning in warnings] == ["step-000006", "step-000004"]
    assert losses(following) == losses(undisturbed[1])
    assert adapter_hash(following) == adapter_hash(undisturbed[1])


def test_damage_to_any_file_of_the_newest_leads_to_the_same_end(undisturbed, attempt):
    """Whether damage is seen does not depend on the file; one of each kind is damaged, the newest and then the next."""
    newest = attempt / "out" / "checkpoints" / "step-000006"
    names = sorted(path.name for path in newest.iterdir())
    assert len(names) >= 8
    inputs = undisturbed[0]
    lock = json.loads((newest / "manifest.json").read_text())["lock"]
    for name in names:
        content = (newest / name).read_bytes()
        for damaged in (b"", content[:-1], bytes([content[0] ^ 1]) + content[1:], content + b"x"):
            (newest / name).write_bytes(damaged)
            found = list(checkpoints.usable([attempt / "out"], lock, lambda *_, **__: None))
            assert [checkpoint.step for checkpoint in found] == [4], name
        (newest / name).write_bytes(content)
    (newest / "scheduler.pt").write_bytes(b"")
    outcome = run_here(SPEC, dataclasses.replace(inputs, earlier=[attempt / "out"]), attempt.with_name("2"))
    assert outcome.values["resumed_from_step"] == 4
    assert adapter_hash(attempt.with_name("2")) == adapter_hash(undisturbed[1])


@pytest.mark.parametrize(
    "training",
    [
        {"max_steps": 9, "optimizer": "adamw_8bit", "scheduler": "cosine", "warmup_steps": 2},
        {"max_steps": 9, "scheduler": "linear", "warmup_steps": 3},
        {"max_steps": None, "epochs": 1.7, "batch_size": 3, "gradient_accumulation": 2, "scheduler": "cosine"},
        {"max_steps": None, "epochs": 3, "batch_size": 2, "gradient_accumulation": 3, "optimizer": "adamw_8bit"},
        {"max_steps": 5, "memory": "balanced", "scheduler": "constant", "batch_size": 7, "gradient_accumulation": 1},
    ],
)
def test_from_any_step_it_goes_on_to_the_same_bytes(tmp_path, training):
    """The first checkpoint of a run, one of the middle and the last two, across the ends of epochs."""
    inputs = make_inputs(tmp_path, documents=40)
    spec = make_spec({"lora": {"dropout": 0.1}, "checkpoints": {"every_steps": 1, "keep": 99}}, **training)
    whole = tmp_path / "whole"
    steps = run_here(spec, inputs, whole).values["steps"]
    rows = [event["epoch"] for event in events(whole, "progress") if "epoch" in event]
    assert len(rows) == steps > 3
    assert training.get("epochs") is None or any(epoch > 1 for epoch in rows)
    saved = sorted((whole / "out" / "checkpoints").iterdir())
    for checkpoint in dict.fromkeys((saved[0], saved[len(saved) // 2], saved[-2], saved[-1])):
        one = tmp_path / "only" / checkpoint.name
        shutil.copytree(checkpoint, one / "out" / "checkpoints" / checkpoint.name)
        again = tmp_path / "again" / checkpoint.name
        outcome = run_here(spec, dataclasses.replace(inputs, earlier=[one / "out"]), again)
        assert outcome.values["resumed_from_step"] == checkpoints.step_of(checkpoint)
        assert losses(again) == {step: loss for step, loss in losses(whole).items() if step > checkpoints.step_of(checkpoint)}
        assert adapter_hash(again) == adapter_hash(whole)


def test_other_held_out_rows_are_measured_on_the_base_model_again(tmp_path):
    inputs = make_inputs(tmp_path, validation=True)
    spec = make_spec({"checkpoints": {"every_steps": 2}})
    run_here(spec, inputs, tmp_path / "1")
    shutil.rmtree(inputs.folders["prepare"] / "validation")
    save_plan(tmp_path / "other", random_documents(5, seed=9)).rename(inputs.folders["prepare"] / "validation")
    after = dataclasses.replace(inputs, earlier=[tmp_path / "1" / "out"])
    assert run_here(spec, after, tmp_path / "2").values["resumed_from_step"] == 4
    fresh = run_here(spec, inputs, tmp_path / "3")
    assert fresh.values["resumed_from_step"] is None
    summaries = [events(tmp_path / name, "summary")[0] for name in "123"]
    assert summaries[1]["eval_loss_base"] == summaries[2]["eval_loss_base"] != summaries[0]["eval_loss_base"]
    assert adapter_hash(tmp_path / "2") == adapter_hash(tmp_path / "3")


def test_the_gradient_scaler_is_saved_and_restored(undisturbed, tmp_path, monkeypatch):
    """fp16's scale and how long it has held. A CPU has no such training, so the scaler is put where a GPU's would be."""
    made, init = [], PlanTrainer.__init__

    def with_scaler(self, *arguments):
        init(self, *arguments)
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=512.0 if made else 4096.0)
        self.accelerator.scaler._lazy_init_scale_growth_tracker(torch.device("cpu"))
        self.accelerator.scaler._growth_tracker.fill_(0 if made else 17)
        made.append(self.accelerator.scaler)

    monkeypatch.setattr(PlanTrainer, "__init__", with_scaler)
    run_here(SPEC, undisturbed[0], tmp_path / "1")
    assert (tmp_path / "1" / "out" / "checkpoints" / "step-000006" / "scaler.pt").exists()
    run_here(SPEC, dataclasses.replace(undisturbed[0], earlier=[tmp_path / "1" / "out"]), tmp_path / "2")
    assert [scaler.get_scale() for scaler in made] == [4096.0, 4096.0]
    assert [scaler.state_dict()["_growth_tracker"] for scaler in made] == [17 + 7, 17 + 7]
    assert adapter_hash(tmp_path / "2") == adapter_hash(tmp_path / "1")
