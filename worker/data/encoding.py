"""The second pass over a data set: the chosen rows become documents."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from worker.data.formats.turns import Preference
from worker.data.long_rows import Losses, fit
from worker.data.masks import Encoder
from worker.data.plan import Document
from worker.data.rows import Refusal, RowRefused
from worker.data.surveys import Choice, Usable

BATCH_ROWS = 512
PROGRESS_SECONDS = 2.0


@dataclass
class Encoding:
    """Encodes the rows that it is given, in batches. `rows` counts those that gave a document."""

    encoder: Encoder
    max_seq_length: int
    policy: str
    documents: list[Document] = field(default_factory=list)
    rows: int = 0
    losses: Losses = field(default_factory=Losses)
    refusals: list[Refusal] = field(default_factory=list)
    _waiting: list[Usable] = field(default_factory=list)

    def add(self, row: Usable) -> None:
        self._waiting.append(row)
        if len(self._waiting) == BATCH_ROWS:
            self.flush()

    def flush(self) -> None:
        samples = [row.sample for row in self._waiting]
        results = fit(samples, self.encoder, max_seq_length=self.max_seq_length, policy=self.policy, losses=self.losses)
        for row, result in zip(self._waiting, results, strict=True):
            if isinstance(result, RowRefused):
                self.refusals.append(result.at(row.line))
            else:
                self.documents.extend(result)
                self.rows += bool(result)
        self._waiting.clear()


def encode_rows(
    rows: Iterable[Usable | Refusal], choice: Choice, training: Encoding, validation: Encoding, *, prompts: int, report: Any
) -> list[dict[str, Any]]:
    """Adds the chosen rows to their side. Gives up to `prompts` of the held-out ones, see `question_of`."""
    sides = np.zeros(1 + max((int(numbers[-1]) for numbers in choice[:2] if len(numbers)), default=-1), dtype=np.uint8)
    sides[choice.training], sides[choice.validation] = 1, 2
    questions: list[dict[str, Any]] = []
    spoken = time.monotonic()
    usable = (row for row in rows if isinstance(row, Usable))
    for number, (row, side) in enumerate(zip(usable, sides.tolist(), strict=False)):
        if side == 1:
            training.add(row)
        elif side == 2:
            validation.add(row)
            if len(questions) < prompts and (question := question_of(row, validation)):
                questions.append(question)
        if time.monotonic() - spoken > PROGRESS_SECONDS:
            spoken = time.monotonic()
            report("progress", message=f"Tokenising: {number + 1} of {len(sides)} rows")
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
