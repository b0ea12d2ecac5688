"""The forms that a row may have: each a module of `DESCRIPTION`, `matches(fields)` and `normalise(fields)`, and a line here.

`normalise` gives a Sample or raises RowRefused. Whatever the form, a Sample is a conversation, a text or a preference; nothing
later asks more.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

from app.jobs.states import FailureCode
from worker.data.formats import alpaca, instruction_response, messages, preference, prompt_completion, sharegpt, text
from worker.data.formats.turns import Conversation, Preference, Turn
from worker.data.rows import RowRefused
from worker.stages import StageFailure

Sample = Conversation | str | Preference

FORMATS: dict[str, ModuleType] = {
    "preference": preference,
    "sharegpt": sharegpt,
    "messages": messages,
    "alpaca": alpaca,
    "prompt_completion": prompt_completion,
    "instruction_response": instruction_response,
    "text": text,
}
"""In the order in which they are tried."""

DETECTION_ROWS = 100


def detect(rows: Iterable[dict[str, Any]]) -> str:
    """The form that most of the rows have; pass the first DETECTION_ROWS. StageFailure dataset_invalid if none has any."""
    votes = dict.fromkeys(FORMATS, 0)
    columns: dict[str, None] = {}
    for fields in rows:
        columns |= dict.fromkeys(str(name) for name in fields)
        for name, module in FORMATS.items():
            if module.matches(fields):
                votes[name] += 1
                break
    if not any(votes.values()):
        known = "; ".join(module.DESCRIPTION for module in FORMATS.values())
        found = ", ".join(list(columns)[:20]) or "none"
        message = f"The rows have no form that we know. Their columns are: {found}."
        raise StageFailure(FailureCode.DATASET_INVALID, message, hint=f"Known forms: {known}.", param="dataset.format")
    return max(votes, key=lambda name: votes[name])


def normalise_row(fields: dict[str, Any], form: str) -> Sample:
    """The row in our form, or RowRefused: whatever JSON it holds, nothing else is raised."""
    try:
        return FORMATS[form].normalise(fields)
    except RecursionError as problem:
        raise RowRefused("invalid_json", "The row is nested too deep.") from problem


def digest_of(sample: Sample, seed: int = 0) -> bytes:
    """16 bytes that are equal for equal samples, and otherwise as good as random; another seed gives others."""
    digest = hashlib.blake2b(digest_size=16, salt=seed.to_bytes(16, "little"))
    for part in parts_of(sample):
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.digest()


def parts_of(sample: Sample) -> Iterator[str]:
    """What makes a sample this one and no other. Weights do not: they say how to learn, not what."""
    if isinstance(sample, str):
        yield sample
    elif isinstance(sample, Preference):
        yield "chosen"
        yield from parts_of(sample.chosen)
        yield "rejected"
        yield from parts_of(sample.rejected)
    else:
        for turn in sample.turns:
            yield turn["role"]
            yield turn["content"]
            if len(turn) > 2:
                yield json.dumps(turn, sort_keys=True)
        if sample.tools:
            yield json.dumps(sample.tools, sort_keys=True)


def texts_of(sample: Sample) -> list[str]:
    """The texts of a sample's turns, of a preference those with the chosen answer; a text by itself."""
    if isinstance(sample, str):
        return [sample]
    turns: list[Turn] = sample.chosen.turns if isinstance(sample, Preference) else sample.turns
    return [turn["content"] for turn in turns]
