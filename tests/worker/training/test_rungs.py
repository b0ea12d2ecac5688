"""Runs that a device has too little memory for go down the ladder to the numbers of a run that started on the lower rung."""

import dataclasses

import pytest
import torch
from tiny_run import events, losses, make_inputs, make_spec, run_here

from app.jobs.ladder import next_rung
from app.jobs.spec import JobSpec, merged
from app.jobs.states import FailureCode
from worker.stages import StageFailure
from worker.training import evaluation, objectives


@pytest.fixture
def device_of(monkeypatch):
    """A device without memory for micro-batches of more than `rows` rows, from the `after`-th such on."""
    whole = {objectives: objectives.target_losses, evaluation: evaluation.target_scores}

    def limit(rows, *, module=objectives, after=1):
        measure = whole[module]
        seen = 0

        def limited(model, batch):
            nonlocal seen
            too_many = len(batch["input_ids"]) > rows
            seen += too_many
            if too_many and seen >= after:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return measure(model, batch)

        monkeypatch.setattr(module, measure.__name__, limited)

    return limit


def climb(spec, inputs, folder):
    """Attempts as the worker makes them: each after running out of memory, on the next rung. The last, and how many."""
    attempts = []
    for number in range(1, 20):
        attempt = folder / str(number)
        try:
            run_here(spec, dataclasses.replace(inputs, earlier=attempts[::-1]), attempt)
            return attempt, number, spec
        except StageFailure as failure:
            assert failure.code == FailureCode.OUT_OF_MEMORY
            rung = next_rung(spec.training.model_dump())
            assert failure.patch == {"training": rung}
            spec = JobSpec.model_validate(merged(spec.model_dump(), failure.patch))
            attempts.append(attempt / "out")
    raise AssertionError


def consumed(attempt):
    """Rows and tokens after each step: the data, in its order."""
    return {event["step"]: (event["epoch"], event["tokens_seen"]) for event in events(attempt, "progress") if "step" in event}


@pytest.mark.parametrize(
    ("batch_size", "fits", "rungs", "settled"),
    [(6, 2, 3, (1, 12)), (7, 3, 2, (1, 14))],
)
def test_it_ends_with_the_rows_seed_and_order_that_it_began_with(tmp_path, device_of, batch_size, fits, rungs, settled):
    inputs = make_inputs(tmp_path)
    spec = make_spec(batch_size=batch_size, gradient_accumulation=2, max_steps=4)
    device_of(fits)
    attempt, number, last = climb(spec, inputs, tmp_path / "climbed")
    assert number == rungs
    assert (last.training.batch_size, last.training.gradient_accumulation) == settled
    run_here(last, inputs, tmp_path / "started")
    assert losses(attempt) == losses(tmp_path / "started")
    device_of(10_000)
    run_here(spec, inputs, tmp_path / "wide")
    assert consumed(attempt) == consumed(tmp_path / "wide")
    assert losses(attempt) == pytest.approx(losses(tmp_path / "wide"), rel=1e-3)


def test_in_the_middle_of_a_run_it_goes_on_from_the_checkpoint(tmp_path, device_of):
    inputs = make_inputs(tmp_path)
    spec = make_spec({"checkpoints": {"every_steps": 2}}, batch_size=6, gradient_accumulation=2, max_steps=7)
    device_of(3, after=2 * 5)
    attempt, number, last = climb(spec, inputs, tmp_path / "climbed")
    assert (number, last.training.batch_size, last.training.gradient_accumulation) == (2, 3, 4)
    assert sorted(losses(tmp_path / "climbed" / "1")) == [1, 2, 3, 4]
    assert sorted(losses(attempt)) == [5, 6, 7]
    (warning,) = events(attempt, "warning")
    assert warning["code"] == "checkpoint_degraded"
    assert warning["changes"] == [{"item": "training.batch_size", "old": 6, "new": 3}]
    device_of(10_000)
    run_here(last, inputs, tmp_path / "started")
    whole = losses(tmp_path / "climbed" / "1") | losses(attempt)
    assert whole == pytest.approx(losses(tmp_path / "started"), rel=1e-3)
    assert consumed(tmp_path / "climbed" / "1") | consumed(attempt) == consumed(tmp_path / "started")


@pytest.mark.parametrize("after", [1, 2])
def test_in_evaluation_it_keeps_what_was_trained(tmp_path, device_of, after):
    """Before training there is nothing to keep; after it, only the measuring is done again."""
    inputs = make_inputs(tmp_path, validation=True)
    spec = make_spec(batch_size=2, gradient_accumulation=1, max_steps=3)
    device_of(1, module=evaluation, after=after)
    attempt, number, last = climb(spec, inputs, tmp_path / "climbed")
    assert (number, last.training.batch_size) == (2, 1)
    assert sorted(losses(attempt)) == ([1, 2, 3] if after == 1 else [])


def test_without_a_rung_left_it_advises_shorter_rows(tmp_path, device_of):
    device_of(0)
    with pytest.raises(StageFailure) as failure:
        run_here(make_spec(batch_size=1, memory="balanced"), make_inputs(tmp_path), tmp_path / "1")
    assert failure.value.patch == {"training": {"max_seq_length": 32}}
