"""The adapter of the lowest held-out loss is what a run with early stopping makes, whatever interrupts it."""

import dataclasses
import hashlib
import shutil

import pytest
from tiny_run import events, make_inputs, make_spec, run_here

from worker.training import checkpoints

EVERY = 2
SETTINGS = {"max_steps": 30, "scheduler": "constant", "learning_rate": 0.02}


def make_stopping(patience=2, *, min_delta=0.0, every=EVERY, **training):
    stopping = {"early_stopping": {"patience": patience, "min_delta": min_delta}, "evaluation": {"every_steps": every}}
    more = stopping | {"lora": {"dropout": 0.1}, "checkpoints": {"every_steps": 1, "keep": 99}}
    return make_spec(more, **SETTINGS | training)


def adapter_hash(attempt):
    return hashlib.sha256((attempt / "out" / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def held_out_losses(attempt):
    points = [point for event in events(attempt, "metrics") for point in event["points"]]
    return {point["step"]: point["eval_loss"] for point in points if point["eval_loss"] is not None}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The inputs of a run that was stopped early, its attempt and its values."""
    folder = tmp_path_factory.mktemp("stopped")
    inputs = make_inputs(folder, validation=True)
    return inputs, folder / "1", run_here(make_stopping(), inputs, folder / "1").values


def test_it_ends_when_patience_does_and_keeps_the_best(stopped, tmp_path):
    inputs, attempt, values = stopped
    found = held_out_losses(attempt)
    best = min(found, key=found.__getitem__)
    assert values["stopped_early"] and values["steps"] == max(found) == best + 2 * EVERY < 30
    assert values["best_step"] == best > 0
    summary = events(attempt, "summary")[-1]
    assert summary["eval_loss"] == pytest.approx(found[best], rel=1e-6)
    (warning,) = [event for event in events(attempt, "warning") if event["code"] == "stopped_early"]
    assert (warning["step"], warning["best_step"]) == (max(found), best)
    assert f"step {best}" in warning["message"]
    run_here(make_spec({"lora": {"dropout": 0.1}}, **SETTINGS | {"max_steps": best}), inputs, tmp_path / "plain")
    assert adapter_hash(tmp_path / "plain") == adapter_hash(attempt)


def test_after_any_interruption_it_ends_at_the_same_step_with_the_same_adapter(stopped, tmp_path):
    inputs, attempt, values = stopped
    saved = sorted((attempt / "out" / "checkpoints").iterdir())
    best, last = values["best_step"], values["steps"]
    assert checkpoints.step_of(saved[-1]) == last
    for step in sorted({1, best, best + 1, last - 1, last}):
        name = f"step-{step:06d}"
        shutil.copytree(attempt / "out" / "checkpoints" / name, tmp_path / name / "out" / "checkpoints" / name)
        again = dataclasses.replace(inputs, earlier=[tmp_path / name / "out"])
        outcome = run_here(make_stopping(), again, tmp_path / f"after-{step}")
        assert outcome.values["resumed_from_step"] == step
        assert {key: outcome.values[key] for key in ("best_step", "stopped_early", "steps")} == {
            "best_step": best,
            "stopped_early": True,
            "steps": last,
        }
        assert adapter_hash(tmp_path / f"after-{step}") == adapter_hash(attempt)


def test_a_checkpoint_without_its_best_adapter_is_passed_over(stopped, tmp_path):
    inputs, attempt, values = stopped
    shutil.copytree(attempt, tmp_path / "1")
    for step in range(values["best_step"] + 1, values["steps"] + 1):
        folder = tmp_path / "1" / "out" / "checkpoints" / f"step-{step:06d}"
        if step == values["steps"]:
            (folder / "best.safetensors").write_bytes(b"half")
        else:
            shutil.rmtree(folder)
    outcome = run_here(make_stopping(), dataclasses.replace(inputs, earlier=[tmp_path / "1" / "out"]), tmp_path / "2")
    assert outcome.values["resumed_from_step"] == values["best_step"]
    assert adapter_hash(tmp_path / "2") == adapter_hash(attempt)


def test_other_patience_is_another_run(stopped, tmp_path):
    inputs, attempt, _ = stopped
    after = dataclasses.replace(inputs, earlier=[attempt / "out"])
    outcome = run_here(make_stopping(patience=1, max_steps=4), after, tmp_path / "2")
    assert outcome.values["resumed_from_step"] is None


def test_with_patience_left_the_best_is_kept_and_the_last_step_counts(stopped, tmp_path):
    """Seven steps, measured at 3, 6 and the end."""
    inputs = stopped[0]
    learning = run_here(make_stopping(patience=9, every=3, max_steps=7, learning_rate=1e-4), inputs, tmp_path / "1").values
    assert (learning["steps"], learning["best_step"], learning["stopped_early"]) == (7, 7, False)
    assert not events(tmp_path / "1", "warning")
    worse = run_here(make_stopping(patience=9, every=3, max_steps=17), inputs, tmp_path / "2").values
    found = held_out_losses(tmp_path / "2")
    assert worse["best_step"] == min(found, key=found.__getitem__) < 17
    assert not worse["stopped_early"]
    assert [event["code"] for event in events(tmp_path / "2", "warning")] == ["best_adapter"]


def test_gains_below_min_delta_do_not_count(stopped, tmp_path):
    spec = make_stopping(patience=2, min_delta=10.0, every=1, learning_rate=1e-4)
    values = run_here(spec, stopped[0], tmp_path / "1").values
    found = held_out_losses(tmp_path / "1")
    assert (values["steps"], values["stopped_early"]) == (3, True)
    assert values["best_step"] == min(found, key=found.__getitem__)
