"""The first pass over a data set: its form, its refused rows, and what it takes to choose rows without holding their text."""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from app.jobs.states import FailureCode
from worker.data.formats import DETECTION_ROWS, Sample, detect, digest_of, normalise_row, texts_of
from worker.data.progress import Pulse
from worker.data.rows import Refusal, Row, RowRefused
from worker.stages import StageFailure

LISTED_REFUSALS = 100
LISTED_LINES = 20
KEY = np.dtype([("high", np.uint64), ("low", np.uint64)])
HEAD_ROWS = 10_000
"""The form is told from the first rows that can be read, and those are sought among this many."""


class Usable(NamedTuple):
    """A row in our form, and where it was."""

    line: int
    sample: Sample


@dataclass
class Survey:
    """`refusals` are the first LISTED_REFUSALS, `refused_by_code` counts all. Of each usable row, in file order: the 16 bytes
    of its digest, its line, its number of turns (1 for a text) and of characters."""

    form: str
    columns: list[str] = field(default_factory=list)
    rows: int = 0
    refusals: list[Refusal] = field(default_factory=list)
    refused_by_code: Counter[str] = field(default_factory=Counter)
    digests: bytearray = field(default_factory=bytearray)
    lines: array = field(default_factory=lambda: array("Q"))
    turns: array = field(default_factory=lambda: array("Q"))
    characters: array = field(default_factory=lambda: array("Q"))

    @property
    def refused(self) -> int:
        return self.refused_by_code.total()

    @property
    def usable(self) -> int:
        return self.rows - self.refused

    @cached_property
    def duplicates(self) -> np.ndarray:
        """The lines of usable rows that equal an earlier one, ascending."""
        _, first = np.unique(self.keys(), return_index=True)
        return np.delete(np.array(self.lines, dtype=np.int64), first)

    def keys(self) -> np.ndarray:
        """The digests, KEY [usable]."""
        return np.frombuffer(bytes(self.digests), dtype=KEY)


def survey(rows: Iterable[Row | Refusal], *, form: str, seed: int, report: Any = None) -> Survey:
    """Reads every row once. `form` may be `auto`; `seed` goes into the digests; `report` is told how far it is.

    StageFailure dataset_invalid if no row can be read or their form is not known.
    """
    form, rows = tell_form(rows, form)
    found = Survey(form)
    pulse = Pulse(report, "Reading the data set") if report else None
    for item in normalise(note_columns(rows, found), form):
        found.rows += 1
        if pulse:
            pulse.beat(found.rows)
        if isinstance(item, Refusal):
            found.refused_by_code[item.code] += 1
            if len(found.refusals) < LISTED_REFUSALS:
                found.refusals.append(item)
        else:
            texts = texts_of(item.sample)
            found.digests += digest_of(item.sample, seed)
            found.lines.append(item.line)
            found.turns.append(len(texts))
            found.characters.append(sum(map(len, texts)))
    return found


def note_columns(rows: Iterable[Row | Refusal], found: Survey) -> Iterator[Row | Refusal]:
    """The rows as they are; the columns of the first DETECTION_ROWS are written down."""
    for number, row in enumerate(rows):
        if number < DETECTION_ROWS and isinstance(row, Row):
            found.columns += [name for name in map(str, row.fields) if name not in found.columns]
        yield row


def tell_form(rows: Iterable[Row | Refusal], form: str) -> tuple[str, Iterator[Row | Refusal]]:
    """The form, told from the first rows if it is `auto`, and all rows. StageFailure as `survey`."""
    iterator = iter(rows)
    head = read_head(iterator)
    readable = [row.fields for row in head if isinstance(row, Row)]
    if not head:
        raise StageFailure(FailureCode.DATASET_EMPTY, "The data set has no rows.", hint="Give one with at least one row.")
    if not readable:
        message = f"No row can be read. {name_lines([item for item in head if isinstance(item, Refusal)])}"
        raise StageFailure(FailureCode.DATASET_INVALID, message, hint="Write one JSON object a line.")
    return detect(readable) if form == "auto" else form, chain(head, iterator)


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
    `leaked` are the lines of those that could have been trained on, but equal a held-out one: they are left out."""

    training: np.ndarray
    validation: np.ndarray
    leaked: np.ndarray


def choose(found: Survey, *, max_samples: int | None, validation_fraction: float, held_out: Survey | None = None) -> Choice:
    """The rows with the lowest digests: held-out rows first, then training rows.

    So the choice hangs on the content and the survey's seed alone, and equal rows never lie on both sides. The fraction is of
    the rows asked for; held-out rows are taken beside them as long as there are any. `held_out` is a survey, by the same seed,
    of rows that are held out already.
    """
    keys = found.keys()
    order = np.lexsort((keys["low"], keys["high"]))
    asked = min(max_samples or found.usable, found.usable)
    count = round(validation_fraction * asked)
    if validation_fraction and found.usable > 1:
        count = max(1, count)
    taken = keys[order[:count]] if held_out is None else held_out.keys()
    rest = order[count:]
    leaks = equal_any(keys[rest], taken)
    lines = np.array(found.lines, dtype=np.int64)[rest[leaks]]
    return Choice(np.sort(rest[~leaks][:asked]), np.sort(order[:count]), np.sort(lines))


def equal_any(keys: np.ndarray, others: np.ndarray) -> np.ndarray:
    """bool [keys]: whether the key is one of the others."""
    if not len(others):
        return np.zeros(len(keys), dtype=np.bool_)
    _, numbers = np.unique(np.concatenate([keys, others]), return_inverse=True)
    return np.isin(numbers[: len(keys)], numbers[len(keys) :])
