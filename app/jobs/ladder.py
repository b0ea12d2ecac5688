"""What to try after training ran out of memory: smaller micro-batches first, then less memory kept for speed."""

from typing import Any

from app.jobs.spec import MAX_ACCUMULATION


def next_rung(training: dict[str, Any]) -> dict[str, Any] | None:
    """The patch of a spec's `training` for the next attempt, or None when nothing is left to try.

    The number of examples per optimizer step, `batch_size * gradient_accumulation`, stays the same.
    """
    batch_size, accumulation = training["batch_size"], training["gradient_accumulation"]
    factor = next((number for number in range(2, batch_size + 1) if batch_size % number == 0), None)
    if factor and accumulation * factor <= MAX_ACCUMULATION:
        return {"batch_size": batch_size // factor, "gradient_accumulation": accumulation * factor}
    if training["memory"] in ("auto", "speed"):
        return {"memory": "balanced"}
    return None
