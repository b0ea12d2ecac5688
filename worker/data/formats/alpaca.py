"""Alpaca: {"instruction": "…", "input": "…", "output": "…"}, with or without the input and a "system" text."""

from typing import Any

from worker.data.formats.turns import Conversation, exchange, read_text
from worker.data.rows import RowRefused

DESCRIPTION = 'alpaca: "instruction", "output" and, if needed, "input"'


def matches(fields: dict[str, Any]) -> bool:
    return "instruction" in fields and "output" in fields


def normalise(fields: dict[str, Any]) -> Conversation:
    """The input follows the instruction after an empty line, both as the user's turn."""
    if fields.get("instruction") is None:
        raise RowRefused("unknown_format", 'The row has no "instruction".')
    if fields.get("output") is None:
        raise RowRefused("no_answer", 'The row has no "output".')
    texts = [read_text(fields, name) for name in ("instruction", "input")]
    return exchange(fields, "\n\n".join(filter(None, texts)), read_text(fields, "output"))
