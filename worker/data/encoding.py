"""The second pass over a data set: the chosen rows become documents."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from worker.data.formats.turns import Preference
from worker.data.long_rows import Fitted, fit
from worker.data.masks import Encoder
from worker.data.progress import Pulse
from worker.data.rows import Refusal, RowRefused
from worker.data.spool import Spool
from worker.data.surveys import LISTED_LINES, LISTED_REFUSALS, Usable

BATCH_ROWS = 256
TRAINING, VALIDATION = 1, 2
"""The sides that a row can be on; 0 is neither."""


@dataclass
class Encoding:
    """Encodes the rows that it is given, in batches, into `documents`.

    `counts` has, in rows: `used` (they gave a document), `split`, `cut`, `dropped`, `unrolled` (written as several documents by
    their template) and each refusal's code; and `tokens_lost`. `lines` are the first LISTED_LINES of each.
    """

    encoder: Encoder
    max_seq_length: int
    policy: str
    documents: Spool
    refusals: list[Refusal] = field(default_factory=list)
    refused_by_code: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    lines: dict[str, list[int]] = field(default_factory=dict)
    _waiting: list[Usable] = field(default_factory=list)

    @property
    def refused(self) -> int:
        return self.refused_by_code.total()

    def add(self, row: Usable) -> None:
        self._waiting.append(row)
        if len(self._waiting) == BATCH_ROWS:
            self.flush()

    def flush(self) -> None:
        samples = [row.sample for row in self._waiting]
        results = fit(samples, self.encoder, max_seq_length=self.max_seq_length, policy=self.policy)
        for row, result in zip(self._waiting, results, strict=True):
            if isinstance(result, RowRefused):
                self._refuse(result.at(row.line))
            else:
                self._keep(result, row.line)
        self._waiting.clear()

    def _refuse(self, refusal: Refusal) -> None:
        self.refused_by_code[refusal.code] += 1
        if len(self.refusals) < LISTED_REFUSALS:
            self.refusals.append(refusal)

    def _keep(self, fitted: Fitted, line: int) -> None:
        self.documents.extend(fitted.documents)
        self.counts["tokens_lost"] += fitted.tokens_lost
        what = {"used": fitted.documents, "dropped": not fitted.documents, "split": fitted.split, "cut": fitted.cut}
        for name, happened in (what | {"unrolled": fitted.unrolled}).items():
            if happened:
                self.counts[name] += 1
                lines = self.lines.setdefault(name, [])
                if len(lines) < LISTED_LINES:
                    lines.append(line)


def encode_rows(
    rows: Iterable[Usable | Refusal], sides: np.ndarray, training: Encoding, validation: Encoding, *, prompts: int, report: Any
) -> list[dict[str, Any]]:
    """Adds the rows to their sides; `sides` is uint8 [usable rows]. Gives up to `prompts` of the held-out ones, see
    `question_of`."""
    questions: list[dict[str, Any]] = []
    pulse = Pulse(report, "Tokenising", len(sides))
    usable = (row for row in rows if isinstance(row, Usable))
    for number, (row, side) in enumerate(zip(usable, sides.tolist(), strict=False)):
        if side == TRAINING:
            training.add(row)
        elif side == VALIDATION:
            validation.add(row)
            if len(questions) < prompts and (question := question_of(row, validation)):
                questions.append(question)
        pulse.beat(number + 1)
    training.flush()
    validation.flush()
    return questions


def question_of(row: Usable, side: Encoding) -> dict[str, Any] | None:
    """{prompt_ids, prompt, question, reference}: the conversation up to its last answer, the turn before it, and the answer.

    Of a preference, up to the first answer that differs, which is the chosen one. None for a text, for an answer that is only a
    call, or a question that leaves no room for an answer in a row.
    """
    if isinstance(row.sample, str):
        return None
    conversation = row.sample.chosen if isinstance(row.sample, Preference) else row.sample
    asked = row.sample.shared if isinstance(row.sample, Preference) else len(conversation.turns) - 1
    answer = conversation.turns[asked]["content"]
    prompt = side.encoder.encode_prompt(conversation, conversation.turns[:asked])
    if not answer or prompt is None or len(prompt[0]) >= side.max_seq_length:
        return None
    question = conversation.turns[asked - 1]["content"]
    return {"prompt_ids": prompt[0], "prompt": prompt[1], "question": question, "reference": answer}
