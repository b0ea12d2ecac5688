"""Direct preference optimisation: against a plain reference, and as a stage that is interrupted."""

import dataclasses
import json
import math
import shutil
from itertools import pairwise
from unittest.mock import ANY

import pytest
import torch
from safetensors.torch import save_file
from tiny_run import events, losses, make_inputs, make_spec, random_pairs, run_here, save_plan
from torch.nn.functional import log_softmax, logsigmoid
from transformers import AutoTokenizer

from app.jobs.ladder import next_rung
from app.jobs.spec import Preference
from worker.data.base_models import BaseModel
from worker.data.plan import IGNORED
from worker.stages import Report
from worker.stages.train import make_run, open_plan, settle
from worker.training import Run, checkpoints
from worker.training.batches import RowOrder, count_rows
from worker.training.device import open_device
from worker.training.model import attach_adapter, last_hidden, load_base
from worker.training.objectives import open_objective
from worker.training.preference_batches import Pair, collate
from worker.training.preference_loss import describe, judge
from worker.training.progress import Counters
from worker.training.trl_engine import PlanTrainer

DPO = {"method": "dpo", "preference": {"beta": 0.3}}
SAVING = DPO | {"lora": {"dropout": 0.1}, "checkpoints": {"every_steps": 2, "keep": 9}}


def prepare(tmp_path, more=None, **training) -> Run:
    inputs = make_inputs(tmp_path, pairs=23)
    device = open_device(None)
    base = BaseModel("tiny", "1", tmp_path / "models" / "tiny")
    (tmp_path / "out").mkdir(exist_ok=True)
    spec, _ = settle(make_spec(DPO | (more or {}), **training), device, base.path)
    return make_run(spec, inputs, device, base, open_plan(inputs), tmp_path / "out", Report(tmp_path / "events.jsonl"))


def load(run: Run):
    return attach_adapter(load_base(run.base, run.spec, run.device), run.spec, "1").train()


def learn_something(model):
    """Moves the adapter away from where it does nothing."""
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02, generator=torch.Generator().manual_seed(len(name)))


def documents_of(row):
    starts = [*(row.position_ids == 0).nonzero()[0].tolist(), len(row.input_ids)]
    for start, end in pairwise(starts):
        yield torch.tensor(row.input_ids[start:end]).long(), torch.tensor(row.labels[start:end]).long()


def plain_log_prob(model, input_ids, labels):
    """Of an answer, from all the logits of a forward pass of its own."""
    scores = log_softmax(model(input_ids=input_ids[None], use_cache=False).logits[0, :-1], dim=-1)
    trained = (labels[1:] != IGNORED).nonzero()[:, 0]
    return scores[trained, labels[1:][trained]].sum()


def plain_loss(model, rows, beta):
    """The mean over all pairs of `rows`, with the base as reference."""
    total = torch.zeros(())
    for row in rows:
        chosen, rejected = (plain_log_prob(model, *document) for document in documents_of(row))
        with torch.no_grad(), model.disable_adapter():
            reference_chosen, reference_rejected = (plain_log_prob(model, *document) for document in documents_of(row))
        total = total - logsigmoid(beta * ((chosen - reference_chosen) - (rejected - reference_rejected)))
    return total / len(rows)


def gradients_of(model):
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize(("quantization", "memory"), [("nf4", "speed"), ("nf4", "balanced"), ("none", "speed")])
def test_losses_and_gradients_equal_single_documents_and_the_base_as_reference(tmp_path, quantization, memory):
    run = prepare(tmp_path, {"quantization": quantization}, batch_size=3, gradient_accumulation=2, memory=memory)
    model = load(run)
    objective = open_objective(run, model, None)
    learn_something(model)
    trainer = PlanTrainer(run, model, objective, AutoTokenizer.from_pretrained(run.base), Counters())
    loader = iter(trainer.get_train_dataloader())
    order = list(RowOrder(run.plan, 3, count_rows(run.plan.rows, run.spec.training)))
    for start in (0, 2, 4):
        rows = [run.plan.row(index) for indices in order[start : start + 2] for index in indices]
        expected = plain_loss(model, rows, 0.3)
        expected.backward()
        wanted = gradients_of(model)
        model.zero_grad()
        batches, count = trainer.get_batch_samples(loader, 2, run.device.torch)
        assert count == len(rows) == 6
        found = [trainer.compute_loss(model, batch, num_items_in_batch=count) for batch in batches]
        sum(found).backward()
        assert sum(loss.item() for loss in found) == pytest.approx(expected.item(), rel=1e-4)
        for name, gradient in gradients_of(model).items():
            assert (gradient - wanted[name]).abs().max() <= 1e-4 * wanted[name].abs().max(), name
        model.zero_grad()


def test_a_short_last_window_is_the_mean_of_the_pairs_that_it_has(tmp_path):
    run = prepare(tmp_path, max_steps=None, epochs=1, batch_size=2, gradient_accumulation=4)
    model = load(run)
    trainer = PlanTrainer(run, model, open_objective(run, model, None), AutoTokenizer.from_pretrained(run.base), Counters())
    loader = iter(trainer.get_train_dataloader())
    counts = [trainer.get_batch_samples(loader, 4, run.device.torch)[1] for _ in range(3)]
    assert counts == [8, 8, 7]


def test_documents_share_rows_and_each_sees_only_itself(tmp_path):
    run = prepare(tmp_path)
    model = load(run)
    rows = [run.plan.row(index) for index in range(6)]
    batch = collate([Pair(row, torch.zeros(2)) for row in rows])
    documents = [document for row in rows for document in documents_of(row)]
    assert batch["input_ids"].shape[0] < len(documents) == len(batch["lengths"]) == 12
    assert batch["input_ids"].shape[1] == max(len(ids) for ids, _ in documents) - 1
    assert (batch["rows"], batch["tokens"]) == (6, sum(len(ids) for ids, _ in documents))
    with torch.no_grad():
        packed = last_hidden(model, batch["input_ids"], batch["position_ids"]).flatten(0, 1)[batch["sources"]]
        alone = []
        for ids, labels in documents:
            trained = (labels[1:] != IGNORED).nonzero()[:, 0]
            alone.append(last_hidden(model, ids[None], torch.arange(len(ids))[None])[0][trained])
    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-4, atol=1e-4)
    assert batch["targets"].tolist() == [label for _, labels in documents for label in labels.tolist() if label != IGNORED]


def test_what_is_told_of_pairs():
    log_probs = torch.tensor([[-3.0, -5.0], [-4.0, -4.0], [-6.0, -1.0], [-2.0, -2.0]])
    reference = torch.tensor([[-4.0, -4.0], [-4.0, -4.0], [-5.0, -2.0], [-2.0, -3.0]])
    judged = judge(log_probs, reference, 0.5)
    assert judged.rewards.tolist() == [[0.5, -0.5], [0.0, 0.0], [-0.5, 0.5], [0.0, 0.5]]
    expected = [math.log1p(math.exp(-lead)) for lead in (1.0, 0.0, -1.0, -0.5)]
    assert judged.losses.tolist() == pytest.approx(expected)
    facts = {"reward_chosen": 0.0, "reward_rejected": 0.125, "reward_margin": -0.125, "reward_accuracy": 1.5 / 4}
    assert describe(judged.rewards) == pytest.approx(facts)


def test_the_margin_moves_and_is_told(tmp_path):
    spec = make_spec(DPO | {"evaluation": {"every_steps": 6}}, max_steps=12, learning_rate=2e-2)
    outcome = run_here(spec, make_inputs(tmp_path, pairs=40, validation=True), tmp_path / "1")
    points = [point for event in events(tmp_path / "1", "metrics") for point in event["points"]]
    first, last = points[0], points[-1]
    assert first["loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert (first["reward_margin"], first["reward_accuracy"]) == (0.0, 0.5)
    assert last["reward_margin"] == pytest.approx(last["reward_chosen"] - last["reward_rejected"], rel=1e-5)
    assert last["reward_margin"] > 0.5
    assert last["loss"] < first["loss"]
    assert [point["step"] for point in points if point["eval_loss"] is not None] == [6, 12]
    (summary,) = events(tmp_path / "1", "summary")
    assert summary["eval_loss_base"] == pytest.approx(math.log(2))
    assert (summary["eval_reward_margin_base"], summary["eval_reward_accuracy_base"]) == (0.0, 0.5)
    assert summary["eval_reward_margin"] == points[-1]["eval_reward_margin"] > 0.2
    assert summary["eval_reward_accuracy"] > 0.6
    assert summary["reward_margin"] == last["reward_margin"]
    assert outcome.values["final_loss"] == last["loss"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The inputs of a run over more than an epoch, its spec and its attempt, with checkpoints at steps 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("undisturbed")
    inputs = make_inputs(folder, pairs=15, validation=True)
    spec = make_spec(SAVING, max_steps=7, batch_size=2, gradient_accumulation=2, scheduler="cosine")
    run_here(spec, inputs, folder / "1")
    return inputs, spec, folder / "1"


def adapter_of(attempt):
    return (attempt / "out" / "adapter" / "adapter_model.safetensors").read_bytes()


def left_with(attempt, *steps, folder):
    """What an attempt left that died with these checkpoints."""
    for step in steps:
        name = f"step-{step:06d}"
        shutil.copytree(attempt / "out" / "checkpoints" / name, folder / "checkpoints" / name)
    return folder


@pytest.mark.parametrize("step", [2, 6])
def test_from_a_checkpoint_it_goes_on_to_the_same_bytes_without_asking_the_reference_again(undisturbed, tmp_path, step):
    inputs, spec, whole = undisturbed
    earlier = left_with(whole, step, folder=tmp_path / "0")
    outcome = run_here(spec, dataclasses.replace(inputs, earlier=[earlier]), tmp_path / "1")
    assert outcome.values["resumed_from_step"] == step
    assert losses(tmp_path / "1") == {at: loss for at, loss in losses(whole).items() if at > step}
    assert adapter_of(tmp_path / "1") == adapter_of(whole)
    assert events(tmp_path / "1", "summary")[0] == events(whole, "summary")[0] | {"time": ANY}
    asked = [event for event in events(tmp_path / "1", "progress") if "before training" in (event.get("message") or "")]
    assert asked == []


def damage(path, change):
    """So that the manifest still describes it."""
    change(path)
    manifest = path.parent / "manifest.json"
    facts = json.loads(manifest.read_text())
    facts["files"].pop(path.name)
    if path.exists():
        facts["files"][path.name] = checkpoints.describe(path)
    manifest.write_text(json.dumps(facts))


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b"{}"),
        lambda path: save_file({"training": torch.zeros(3, 2)}, path, metadata={"held_out": ""}),
    ],
)
def test_a_checkpoint_without_its_reference_is_passed_over(undisturbed, tmp_path, change):
    inputs, spec, whole = undisturbed
    earlier = left_with(whole, 2, 4, folder=tmp_path / "0")
    damage(earlier / "checkpoints" / "step-000004" / "reference.safetensors", change)
    outcome = run_here(spec, dataclasses.replace(inputs, earlier=[earlier]), tmp_path / "1")
    assert outcome.values["resumed_from_step"] == 2
    assert [event["reason"] for event in events(tmp_path / "1", "warning")] == ["unfit"]
    assert adapter_of(tmp_path / "1") == adapter_of(whole)


def test_the_reference_is_the_adapter_that_the_run_starts_from(undisturbed, tmp_path):
    inputs, _, whole = undisturbed
    inputs = dataclasses.replace(inputs, adapter=whole / "out" / "adapter")
    run_here(make_spec(DPO | {"from_job": "job_1"}, max_steps=3, warmup_steps=0), inputs, tmp_path / "1")
    points = [point for event in events(tmp_path / "1", "metrics") for point in event["points"]]
    assert (points[0]["loss"], points[0]["reward_margin"]) == (pytest.approx(math.log(2)), 0.0)
    assert points[-1]["reward_margin"] > 0
    (summary,) = events(tmp_path / "1", "summary")
    assert summary["eval_reward_margin"] > summary["eval_reward_margin_base"] == 0.0


def test_another_beta_starts_anew_and_smaller_micro_batches_go_on(undisturbed, tmp_path):
    inputs, spec, whole = undisturbed
    earlier = left_with(whole, 4, folder=tmp_path / "0")
    inputs = dataclasses.replace(inputs, earlier=[earlier])
    other = spec.model_copy(update={"preference": Preference(beta=0.5)})
    assert run_here(other, inputs, tmp_path / "1").values["resumed_from_step"] is None
    assert [change["item"] for change in events(tmp_path / "1", "warning")[0]["changes"]] == ["preference.beta"]
    rung = next_rung(spec.training.model_dump())
    assert rung == {"batch_size": 1, "gradient_accumulation": 4}
    smaller = spec.model_copy(update={"training": spec.training.model_copy(update=rung)})
    assert run_here(smaller, inputs, tmp_path / "2").values["resumed_from_step"] == 4
    expected = {step: loss for step, loss in losses(whole).items() if step > 4}
    assert losses(tmp_path / "2") == pytest.approx(expected, rel=0.2)  # dropout falls on other places


def test_other_held_out_rows_are_asked_again_and_the_others_are_not(undisturbed, tmp_path):
    inputs, spec, whole = undisturbed
    shutil.copytree(inputs.folders["prepare"], tmp_path / "prepared", ignore=shutil.ignore_patterns("validation*"))
    save_plan(tmp_path / "prepared" / "validation", random_pairs(4, seed=5), pairs=True)
    earlier = left_with(whole, 6, folder=tmp_path / "0")
    changed = dataclasses.replace(inputs, earlier=[earlier], folders={"prepare": tmp_path / "prepared"})
    run_here(spec, changed, tmp_path / "1")
    run_here(spec, dataclasses.replace(changed, earlier=[]), tmp_path / "2")
    summaries = [events(attempt, "summary")[0] for attempt in (whole, tmp_path / "1", tmp_path / "2")]
    assert summaries[1] == summaries[2] | {"time": ANY}
    assert summaries[0]["eval_loss"] != summaries[1]["eval_loss"]
