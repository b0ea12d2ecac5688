"""Schedules, warm-up, weight decay and clipping are what their formulas say."""

import math

import pytest
import torch
from test_trl_engine import load, make_trainer, prepare, reference_loss, windows_of
from tiny_run import events, make_inputs, make_spec, run_here

from worker.training.progress import Counters

STEPS, WARMUP, RATE = 20, 2, 5e-3


def rate_of(scheduler, done, steps=STEPS, warmup=WARMUP):
    """The share of the learning rate in the step that follows `done` ones."""
    if done < warmup:
        return done / warmup
    if scheduler == "linear":
        return (steps - done) / (steps - warmup)
    if scheduler == "cosine":
        return (1 + math.cos(math.pi * (done - warmup) / (steps - warmup))) / 2
    return 1.0


@pytest.mark.parametrize("scheduler", ["linear", "cosine", "constant"])
def test_the_learning_rate_follows_its_formula(tmp_path, scheduler):
    spec = make_spec(max_steps=STEPS, warmup_steps=9, scheduler=scheduler, batch_size=1, gradient_accumulation=1)
    run_here(spec, make_inputs(tmp_path), tmp_path / "1")
    points = [point for event in events(tmp_path / "1", "metrics") for point in event["points"]]
    found = [point["learning_rate"] / RATE for point in points]
    assert found == pytest.approx([rate_of(scheduler, done) for done in range(STEPS)], abs=1e-9)  # 9 was cut to a tenth


@pytest.mark.parametrize("scheduler", ["linear", "cosine"])
def test_decay_and_clipping_end_at_the_weights_of_a_plain_loop(tmp_path, scheduler):
    settings = {"max_steps": STEPS, "warmup_steps": WARMUP, "scheduler": scheduler, "learning_rate": RATE}
    run = prepare(tmp_path, **settings, weight_decay=0.9, max_grad_norm=0.3, batch_size=1, gradient_accumulation=2)
    model, plain = load(run), load(run)
    weights = {name: weight for name, weight in plain.named_parameters() if weight.requires_grad}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    optimizer = torch.optim.AdamW(weights.values(), weight_decay=0.9)
    norms = []
    for done, window in enumerate(windows_of(run)):
        optimizer.param_groups[0]["lr"] = RATE * rate_of(scheduler, done)
        optimizer.zero_grad()
        reference_loss(plain, [row for rows in window for row in rows]).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(weights.values(), 0.3).item())
        optimizer.step()
    assert 0.3 < 1.4 * min(norms) < max(norms)  # so that clipping weighs the steps anew
    make_trainer(run, model, Counters()).train()
    found = dict(model.named_parameters())
    for name, weight in weights.items():
        moved = (weight - before[name]).norm()
        assert (found[name] - weight).norm() < 0.01 * moved, name


def test_decay_pulls_every_weight_towards_nought(tmp_path):
    """One step with decay and one without differ by rate times decay times weight."""
    run = prepare(tmp_path, max_steps=1, learning_rate=0.01, scheduler="constant", weight_decay=0.0)
    trained = []
    for decay in (0.0, 0.5):
        run.spec.training.weight_decay = decay
        model = load(run)
        before = {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}
        make_trainer(run, model, Counters()).train()
        trained.append(dict(model.named_parameters()))
    for name, weight in before.items():
        torch.testing.assert_close(trained[0][name] - trained[1][name], 0.01 * 0.5 * weight, rtol=1e-3, atol=1e-6)
