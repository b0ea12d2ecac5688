"""The first pass over a data set: its form, its refused rows, and what it takes to choose rows without holding their text."""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

import numpy as np

from app.jobs.states import FailureCode
from worker.data.formats import DETECTION_ROWS, Sample, detect, digest_of, normalise_row, texts_of
from worker.data.rows import Refusal, Row, RowRefused
from worker.stages import StageFailure

LISTED_REFUSALS = 100
HEAD_ROWS = 10_000
"""The form is told from the first rows that can be read, and those are sought among this many."""


class Usable(NamedTuple):
    """A row in our form, and where it was."""

    line: int
    sample: Sample


@dataclass
class Survey:
    """`refusals` are the first LISTED_REFUSALS, `refused_by_code` counts all. Of each usable row, in file order: the 16 bytes
    of its digest, its number of turns (1 for a text) and of characters."""

    form: str
    columns: list[str]
    rows: int = 0
    refusals: list[Refusal] = field(default_factory=list)
    refused_by_code: Counter[str] = field(default_factory=Counter)
    digests: bytearray = field(default_factory=bytearray)
    turns: array = field(default_factory=lambda: array("Q"))
    characters: array = field(default_factory=lambda: array("Q"))

    @property
    def refused(self) -> int:
        return self.refused_by_code.total()

    @property
    def usable(self) -> int:
        return self.rows - self.refused

    @property
    def duplicates(self) -> int:
        """Usable rows that equal an earlier one."""
        return self.usable - len(np.unique(self.keys(), axis=0))

    def keys(self) -> np.ndarray:
        """The digests as uint64 [usable, 2]."""
        return np.frombuffer(bytes(self.digests), dtype=np.uint64).reshape(-1, 2)


def survey(rows: Iterable[Row | Refusal], *, form: str, seed: int) -> Survey:
    """Reads every row once. `form` may be `auto`; `seed` goes into the digests.

    StageFailure dataset_invalid if no row can be read or their form is not known.
    """
    iterator = iter(rows)
    head = read_head(iterator)
    readable = [row.fields for row in head if isinstance(row, Row)]
    if not head:
        raise StageFailure(FailureCode.DATASET_EMPTY, "The data set has no rows.", hint="Give one with at least one row.")
    if not readable:
        message = f"No row can be read. {name_lines([item for item in head if isinstance(item, Refusal)])}"
        raise StageFailure(FailureCode.DATASET_INVALID, message, hint="Write one JSON object a line.")
    columns = dict.fromkeys(str(name) for fields in readable for name in fields)
    found = Survey(detect(readable) if form == "auto" else form, list(columns))
    for item in normalise(chain(head, iterator), found.form):
        found.rows += 1
        if isinstance(item, Refusal):
            found.refused_by_code[item.code] += 1
            if len(found.refusals) < LISTED_REFUSALS:
                found.refusals.append(item)
        else:
            texts = texts_of(item.sample)
            found.digests += digest_of(item.sample, seed)
            found.turns.append(len(texts))
            found.characters.append(sum(map(len, texts)))
    return found


def read_head(rows: Iterator[Row | Refusal]) -> list[Row | Refusal]:
    """The rows up to the one that makes DETECTION_ROWS readable ones, at most HEAD_ROWS."""
    head: list[Row | Refusal] = []
    readable = 0
    for item in rows:
        head.append(item)
        readable += isinstance(item, Row)
        if readable == DETECTION_ROWS or len(head) == HEAD_ROWS:
            break
    return head


def normalise(rows: Iterable[Row | Refusal], form: str) -> Iterator[Usable | Refusal]:
    """Each row in our form, or why it has none."""
    for row in rows:
        if isinstance(row, Refusal):
            yield row
            continue
        try:
            yield Usable(row.line, normalise_row(row.fields, form))
        except RowRefused as refused:
            yield refused.at(row.line)


def name_lines(refusals: Sequence[Refusal], count: int | None = None, listed: int = 5) -> str:
    """The first few refusals in one line; `count` is how many there are in all."""
    named = " ".join(f"Line {refusal.line}: {refusal.reason}" for refusal in refusals[:listed])
    more = (count or len(refusals)) - min(listed, len(refusals))
    return f"{named} And {more} more." if more else named


class Choice(NamedTuple):
    """Which of the usable rows, counted from 0 in file order, are trained on and which are held out: int64, ascending.
    `left_out` rows could have been trained on, but equal a held-out one."""

    training: np.ndarray
    validation: np.ndarray
    left_out: int


def choose(found: Survey, *, max_samples: int | None, validation_fraction: float) -> Choice:
    """The rows with the lowest digests: held-out rows first, then training rows.

    So the choice hangs on the content and the survey's seed alone, and equal rows never lie on both sides. The fraction is of
    the rows asked for; held-out rows are taken beside them as long as there are any.
    """
    keys = found.keys()
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    asked = min(max_samples or found.usable, found.usable)
    held_out = round(validation_fraction * asked)
    if validation_fraction and found.usable > 1:
        held_out = max(1, held_out)
    start = held_out
    while held_out and start < found.usable and (keys[order[start]] == keys[order[held_out - 1]]).all():
        start += 1
    training = order[start : start + asked]
    return Choice(np.sort(training), np.sort(order[:held_out]), start - held_out)
