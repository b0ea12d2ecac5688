from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from app.jobs.ladder import next_rung
from app.jobs.spec import MAX_ACCUMULATION, Training


@given(st.integers(1, 4096), st.integers(1, 4096), st.sampled_from(["auto", "speed", "balanced", "low"]))
def test_every_rung_keeps_the_effective_batch_and_the_ladder_ends(batch_size: int, accumulation: int, memory: str) -> None:
    training: dict[str, Any] = {"batch_size": batch_size, "gradient_accumulation": accumulation, "memory": memory}
    rungs = 0
    while rung := next_rung(training):
        assert rung.get("batch_size", 0) < training["batch_size"]
        training |= rung
        rungs += 1
        assert training["batch_size"] * training["gradient_accumulation"] == batch_size * accumulation
        Training.model_validate(training)
    assert rungs <= 13
    assert training["memory"] == ("balanced" if memory in ("auto", "speed") else memory)
    assert training["batch_size"] == 1 or batch_size * accumulation > MAX_ACCUMULATION


def test_batches_halve_before_memory_is_saved() -> None:
    assert next_rung({"batch_size": 4, "gradient_accumulation": 2, "memory": "auto"}) == {
        "batch_size": 2,
        "gradient_accumulation": 4,
    }
    assert next_rung({"batch_size": 1, "gradient_accumulation": 8, "memory": "speed"}) == {"memory": "balanced"}
    assert next_rung({"batch_size": 1, "gradient_accumulation": 8, "memory": "balanced"}) is None
