"""The engine against plain torch: the same model, every document by itself, the whole window as one batch."""

import sys
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from tiny_run import make_inputs, make_spec, random_documents, save_plan
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, Cohere2Config, Cohere2ForCausalLM

from app.jobs.spec import JobSpec
from app.jobs.states import FailureCode
from worker.data.base_models import BaseModel
from worker.data.plan import IGNORED, Plan
from worker.stages import Report, StageFailure
from worker.stages.train import make_run, open_plan, settle
from worker.training import Run
from worker.training.batches import RowOrder, collate, count_rows
from worker.training.device import open_device
from worker.training.evaluation import measure
from worker.training.model import attach_adapter, check_head, last_hidden, load_base
from worker.training.objectives import open_objective
from worker.training.progress import Counters
from worker.training.trl_engine import PlanTrainer, train


def prepare(tmp_path, **training) -> Run:
    inputs = make_inputs(tmp_path, documents=23)
    device = open_device(None)
    base = BaseModel("tiny", "1", tmp_path / "models" / "tiny")
    (tmp_path / "out").mkdir(exist_ok=True)
    report = Report(tmp_path / "events.jsonl")
    spec, _ = settle(make_spec(**training), device, base.path)
    return make_run(spec, inputs, device, base, open_plan(inputs), tmp_path / "out", report)


def load(run: Run):
    model = attach_adapter(load_base(run.base, run.spec, run.device), run.spec, "1")
    for name, weight in model.named_parameters():
        if "lora_B" in name:  # zero at first, which leaves lora_A without a gradient to compare
            torch.nn.init.normal_(weight, std=0.02, generator=torch.Generator().manual_seed(len(name)))
    return model.train()  # in eval mode bitsandbytes computes more coarsely on some CPUs


def make_trainer(run: Run, model, counters: Counters | None = None) -> PlanTrainer:
    tokenizer = AutoTokenizer.from_pretrained(run.base)
    return PlanTrainer(run, model, open_objective(run, model, None), tokenizer, counters or Counters())


def documents_of(row):
    """(input_ids, labels) of each document of a row."""
    starts = [*(row.position_ids == 0).nonzero()[0].tolist(), len(row.input_ids)]
    for start, end in pairwise(starts):
        yield torch.tensor(row.input_ids[start:end]).long(), torch.tensor(row.labels[start:end]).long()


def reference_loss(model, rows):
    """Mean over all trained tokens of `rows`, each document in a forward pass of its own with all its logits."""
    total, tokens = torch.zeros(()), 0
    for row in rows:
        for input_ids, labels in documents_of(row):
            logits = model(input_ids=input_ids[None], use_cache=False).logits[0]
            total = total + cross_entropy(logits[:-1], labels[1:], ignore_index=IGNORED, reduction="sum")
            tokens += int((labels[1:] != IGNORED).sum())
    return total / tokens


def windows_of(run: Run):
    """The rows of each optimizer step."""
    training = run.spec.training
    order = list(RowOrder(run.plan, training.batch_size, count_rows(run.plan.rows, training)))
    size = training.gradient_accumulation
    batches = [[run.plan.row(index) for index in batch] for batch in order]
    return [batches[start : start + size] for start in range(0, len(batches), size)]


def gradients_of(model):
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.requires_grad}


def close(found, expected):
    """Within 1e-4 of the largest number of the tensor."""
    return (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("memory", ["speed", "balanced"])
def test_losses_and_gradients_equal_separate_documents_in_one_big_batch(tmp_path, memory):
    run = prepare(tmp_path, batch_size=2, gradient_accumulation=3, memory=memory)
    model = load(run)
    trainer = make_trainer(run, model)
    loader = iter(trainer.get_train_dataloader())
    for window in windows_of(run)[:2]:
        assert len({sum((row.labels != IGNORED).sum() for row in rows) for rows in window}) > 1  # uneven micro-batches
        expected = reference_loss(model, [row for rows in window for row in rows])
        expected.backward()
        wanted = gradients_of(model)
        model.zero_grad()
        batches, tokens = trainer.get_batch_samples(loader, 3, run.device.torch)
        losses = [trainer.compute_loss(model, batch, num_items_in_batch=tokens) for batch in batches]
        sum(losses).backward()
        assert sum(loss.item() for loss in losses) == pytest.approx(expected.item(), rel=1e-4)
        found = gradients_of(model)
        assert all(weight.grad.dtype == torch.float32 for weight in model.parameters() if weight.requires_grad)
        assert [name for name in wanted if not close(found[name], wanted[name])] == []
        model.zero_grad()


@pytest.mark.parametrize("memory", ["speed", "balanced"])
def test_the_trainer_leaves_the_adapter_as_it_is(tmp_path, memory):
    run = prepare(tmp_path, memory=memory)
    model = load(run)
    before = {name: weight.clone() for name, weight in model.named_parameters() if weight.requires_grad}
    make_trainer(run, model)
    after = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert {weight.dtype for weight in after.values()} == {torch.float32}
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_nothing_is_taken_from_the_environment_while_threads_may_read_it(tmp_path):
    run = prepare(tmp_path)
    model, taken, watching = load(run), [], True
    sys.addaudithook(lambda event, _: taken.append(event) if watching and event == "os.unsetenv" else None)
    trainer = make_trainer(run, model)
    watching = False
    assert trainer.accelerator.num_processes == 1 and not taken


def test_measuring_leaves_the_4_bit_weights_as_they_are(tmp_path):
    run = prepare(tmp_path, memory="balanced")
    model = load(run)
    before = {name: weight.clone() for name, weight in model.named_parameters() if weight.dtype == torch.uint8}
    options = {"batch_size": 3, "precision": "fp32", "device": run.device}
    measure(model, run.plan, [], **options, adapter=False)
    check_head(model, run.spec, run.device)
    assert len(before) == 14
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_training_equals_a_plain_loop(tmp_path):
    settings = {"max_steps": None, "epochs": 2, "batch_size": 2, "gradient_accumulation": 2, "weight_decay": 0.01}
    run = prepare(tmp_path, **settings, scheduler="constant", warmup_steps=0, learning_rate=1e-3, max_grad_norm=0.5)
    model = load(run)
    plain = load(run)
    weights = [weight for weight in plain.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.01)
    expected = []
    for window in windows_of(run):
        loss = reference_loss(plain, [row for rows in window for row in rows])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 0.5)
        optimizer.step()
        expected.append(loss.item())
    counters = Counters()
    trainer = make_trainer(run, model, counters)
    result = trainer.train()
    assert run.total_steps == len(expected) == counters.step
    assert run.plan.rows * 2 % 4  # the last window is a short one
    assert counters.rows == run.plan.rows * 2
    assert counters.last_loss == pytest.approx(expected[-1], rel=1e-4)
    assert counters.train_loss == pytest.approx(sum(expected) / len(expected), rel=1e-4)
    assert counters.train_loss == pytest.approx(result.training_loss, rel=1e-6)
    assert expected[-1] < expected[0]


def test_speed_on_a_cpu_keeps_the_weights_that_the_4_bit_layers_compute_with(tmp_path):
    fast, small = prepare(tmp_path, memory="speed"), prepare(tmp_path, memory="balanced")
    batch = collate([fast.plan.row(0)])
    with torch.no_grad():
        found, expected = (last_hidden(load(run), batch["input_ids"], batch["position_ids"]) for run in (fast, small))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    plain = load(replace(fast, spec=JobSpec.model_validate(fast.spec.model_dump() | {"quantization": "none"})))
    with torch.no_grad():
        unquantised = last_hidden(plain, batch["input_ids"], batch["position_ids"])
    assert not torch.allclose(found, unquantised, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("memory", ["speed", "balanced"])
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_a_packed_row_is_as_if_its_documents_were_alone(tmp_path, quantization, memory):
    run = prepare(tmp_path, memory=memory)
    model = load(replace(run, spec=JobSpec.model_validate(run.spec.model_dump() | {"quantization": quantization})))
    rows = [run.plan.row(index) for index in range(2)]
    assert all((row.position_ids == 0).sum() > 1 for row in rows)
    batch = collate(rows)
    with torch.no_grad():
        packed = last_hidden(model, batch["input_ids"], batch["position_ids"])
        for index, row in enumerate(rows):
            start = 0
            for input_ids, _ in documents_of(row):
                alone = last_hidden(model, input_ids[None], torch.arange(len(input_ids))[None])[0]
                inside = packed[index, start : start + len(input_ids)]
                torch.testing.assert_close(inside, alone[: len(inside)], rtol=1e-4, atol=1e-4)
                start += len(input_ids)


def test_a_long_packed_row_teaches_what_its_documents_teach_alone(tmp_path):
    """A row eight times as long as what the model was made for: positions start again with each of its documents."""
    run = prepare(tmp_path)
    model = load(run)
    plan = Plan.open(save_plan(tmp_path / "long", random_documents(200), max_seq_length=2048))
    row = plan.row(0)
    assert len(row.input_ids) == 2048
    starts = (row.position_ids == 0).nonzero()[0]
    assert len(starts) > 50
    assert row.position_ids.max() < 40
    for start, (input_ids, _) in zip(starts, documents_of(row), strict=True):
        assert row.position_ids[start : start + len(input_ids)].tolist() == list(range(len(input_ids)))
    expected = reference_loss(model, [row])
    expected.backward()
    wanted = gradients_of(model)
    model.zero_grad()
    objective = open_objective(run, model, None)
    batch = objective.collate([row])
    loss = objective.summed_loss(batch) / objective.count(batch)
    loss.backward()
    found = gradients_of(model)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert [name for name in wanted if not close(found[name], wanted[name])] == []


def test_the_held_out_loss_is_the_mean_over_trained_tokens_with_and_without_the_adapter(tmp_path):
    run = prepare(tmp_path)
    model = load(run)
    rows = [run.plan.row(index) for index in range(run.plan.rows)]
    options = {"batch_size": 3, "precision": "fp32", "device": run.device}
    with torch.no_grad():
        with_adapter = reference_loss(model, rows).item()
        with model.disable_adapter():
            without = reference_loss(model, rows).item()
    assert with_adapter != pytest.approx(without, rel=1e-4)
    assert measure(model, run.plan, [], **options, adapter=True)["eval_loss"] == pytest.approx(with_adapter, rel=1e-5)
    assert measure(model, run.plan, [], **options, adapter=False)["eval_loss"] == pytest.approx(without, rel=1e-5)
    assert model.training


def test_the_base_is_double_quantised_nf4_in_the_compute_format(tmp_path):
    run = prepare(tmp_path, memory="balanced")
    half = JobSpec.model_validate(run.spec.model_dump() | {"training": run.spec.training.model_dump() | {"precision": "fp16"}})
    base = load_base(run.base, half, run.device)
    states = [weight.quant_state for weight in base.parameters() if hasattr(weight, "quant_state")]
    assert len(states) == 14
    assert {(state.quant_type, state.nested, state.dtype) for state in states} == {("nf4", True, torch.float16)}
    assert base.get_input_embeddings().weight.dtype == torch.float16
    adapted = attach_adapter(base, half, "1")
    assert {weight.dtype for weight in adapted.parameters() if weight.requires_grad} == {torch.float32}


def test_a_model_that_scales_its_logits_is_refused(tmp_path):
    run = prepare(tmp_path)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 300}
    Cohere2ForCausalLM(Cohere2Config(**sizes, num_key_value_heads=2, logit_scale=0.06)).save_pretrained(run.base)
    with pytest.raises(StageFailure, match="logits") as failure:
        train(run)
    assert failure.value.code == FailureCode.MODEL_UNSUPPORTED


@pytest.mark.parametrize("modules", [["no_such_layer"], ["q_proj", "lm_head"]])
def test_target_modules_that_cannot_be_adapted_are_named(tmp_path, modules):
    run = prepare(tmp_path)
    spec = JobSpec.model_validate(run.spec.model_dump() | {"lora": {"target_modules": modules}})
    with pytest.raises(StageFailure, match="q_proj") as failure:
        attach_adapter(load_base(run.base, spec, run.device), spec, "1")
    assert failure.value.param == "lora.target_modules"
