"""The forms that a row may have: each a module of `DESCRIPTION`, `matches(fields)` and `normalise(fields)`, and a line here.

`normalise` gives a Sample or raises RowRefused. Whatever the form, a Sample is a conversation or a text; nothing later asks
more.
"""

import hashlib
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from app.jobs.states import FailureCode
from worker.data.formats import alpaca, messages, sharegpt, text
from worker.data.formats.turns import Turn
from worker.stages import StageFailure

Sample = list[Turn] | str

FORMATS: dict[str, ModuleType] = {"sharegpt": sharegpt, "messages": messages, "alpaca": alpaca, "text": text}
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


def digest_of(sample: Sample, seed: int = 0) -> bytes:
    """16 bytes that are equal for equal samples, and otherwise as good as random; another seed gives others."""
    digest = hashlib.blake2b(digest_size=16, salt=seed.to_bytes(16, "little"))
    parts = [sample] if isinstance(sample, str) else [part for turn in sample for part in (turn["role"], turn["content"])]
    for part in parts:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.digest()
