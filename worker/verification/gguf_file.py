"""One GGUF file held against the model that was trained."""

import math
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from worker.exports.gguf_header import read_header
from worker.verification.chats import Chat, check_tokens
from worker.verification.divergence import Divergence, measure
from worker.verification.llama import CannotLoad, Llama

CERTAINTY = 4.0
"""Standard errors."""
MOST_EXCESS = 0.25
"""Of the adapter, as a share of it."""
LEAST_SHARE, LEAST_SHARE_OF_OLD = 0.1, 0.45
"""Of what a file has wrong, for the adapter to be the fault: a quantization's own error leans to what training changed, too."""
OLD = ("q5_0", "q5_1")
"""What llama.cpp takes for q4_k and q5_k where rows are no multiples of 256 weights."""


@dataclass(frozen=True)
class Expected:
    """What every file of a job must have.

    `template` is None for a model that is asked without one, `stop` for one whose answers no special token ends, `bos` for one
    whose documents begin with none. `stops` are the texts of all tokens that end an answer; `merged` and `base` the logits of
    the merged model and of the base model.
    """

    chats: list[Chat]
    tokenizer: Any
    template: str | None
    bos: int | None
    stop: int | None
    stops: list[str]
    documents: list[np.ndarray]
    merged: list[np.ndarray]
    base: list[np.ndarray]


def verify_file(path: Path, expected: Expected, limits: dict[str, float]) -> dict[str, Any]:
    """The artifact's `verification`: {method, kl, most_kl, perplexity, reference_perplexity, top1, tokens, adapter,
    adapter_error, adapter_share, chats, passed, problems}. What could not be measured is null; `problems` are sentences.
    `limits` are the setting `most_kl`."""
    problems: list[str] = []
    divergence, kind = None, kind_of(path)
    try:
        with Llama(path) as llama:
            problems += check_vocabulary(llama, expected)
            found = llama.logits(expected.documents)
            divergence = measure(expected.documents, expected.merged, expected.base, found)
    except CannotLoad:
        problems.append("llama.cpp cannot load it: it is cut off, or not a file that llama.cpp knows")
    if divergence:
        problems += check_divergence(divergence, limits[kind], kind)
    return describe(divergence) | {
        "method": "llama.cpp",
        "most_kl": limits[kind],
        "chats": len(expected.chats),
        "passed": not problems,
        "problems": problems,
    }


def kind_of(path: Path) -> str:
    """The quantization that the file has in its name, or the older type that most of its weights are of in place of that."""
    asked = path.stem.rpartition("-")[2]
    try:
        slots = read_header(path).slots
    except (ValueError, struct.error):
        return asked  # llama.cpp will not read it either
    weights: Counter[str] = Counter()
    for slot in slots:
        weights[slot.kind.name.lower()] += prod(slot.shape)
    [(main, _)] = weights.most_common(1)
    return main if main in OLD else asked


def check_divergence(found: Divergence, most_kl: float, kind: str) -> Iterator[str]:
    """What is wrong, in sentences."""
    if not found.kl <= most_kl:
        yield f"its probabilities are {found.kl:.4g} nats per token from the merged model's, and at most {most_kl:g} is allowed"
    if is_surely_off(found, kind):
        yield f"it seems to have the adapter in it {found.adapter:.2f} times, not once"


def is_surely_off(found: Divergence, kind: str) -> bool:
    """Whether the adapter counts for something else than once. One that the quantization drowns is not told from a fault."""
    if found.adapter is None or found.adapter_error is None or found.adapter_share is None:
        return False
    surely = abs(found.adapter - 1) - CERTAINTY * found.adapter_error
    return surely > MOST_EXCESS and found.adapter_share >= (LEAST_SHARE_OF_OLD if kind in OLD else LEAST_SHARE)


def describe(divergence: Divergence | None) -> dict[str, Any]:
    """JSON has no number for what is none."""
    figures = asdict(divergence) if divergence else dict.fromkeys(Divergence.__dataclass_fields__)
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in figures.items()}


def check_vocabulary(llama: Llama, expected: Expected) -> list[str]:
    """What is wrong with its tokens, template and stop token, in sentences."""
    if llama.template != expected.template:
        return ["its chat template is not the one that the model was trained with"]
    problems = list(check_tokens(expected.chats, expected.tokenizer, llama, expected.bos))
    if expected.tokenizer.eos_token_id not in (None, llama.eos):
        problems.append(f"its EOS is the token {llama.eos}, not {expected.tokenizer.eos_token_id}")
    elif expected.stop is not None and not llama.stops_at(expected.stop):
        problems.append(f"llama.cpp does not stop at the token {expected.stop}, which ended answers in training")
    return problems
