"""One adapter as a GGUF: taken away from a model that it was merged into, it must leave the base model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from worker.verification.divergence import Divergence, measure
from worker.verification.gguf_file import Expected, describe, is_surely_off, kind_of
from worker.verification.llama import Adapted, CannotLoad


def verify_adapter(path: Path, carrier: Path, expected: Expected, limits: dict[str, float]) -> dict[str, Any]:
    """The artifact's `verification`, as of `verify_file`, with the base model for the merged one; without perplexities, which
    would be the base model's. `carrier` is the GGUF of the merged model."""
    kind = kind_of(carrier)
    divergence, problems = None, []
    try:
        with Adapted(carrier, path, times=-1.0) as llama:
            found = llama.logits(expected.documents)
            divergence = measure(expected.documents, expected.base, expected.merged, found)
    except CannotLoad:
        problems.append("llama.cpp cannot put it on the model: it is cut off, or not an adapter of this model")
    if divergence:
        problems += check_remainder(divergence, limits[kind], kind)
    figures = describe(divergence) | dict.fromkeys(("perplexity", "reference_perplexity"))
    return figures | {"method": "taken away", "most_kl": limits[kind], "passed": not problems, "problems": problems}


def check_remainder(found: Divergence, most_kl: float, kind: str) -> Iterator[str]:
    """What is wrong, in sentences."""
    if not found.kl <= most_kl:
        yield (
            f"taken away from the merged model it leaves probabilities {found.kl:.4g} nats per token from the base model's, "
            f"and at most {most_kl:g} is allowed"
        )
    if is_surely_off(found, kind):
        yield f"llama.cpp takes it for {found.adapter:.2f} times what was trained"
