"""Alpaca: {"instruction": "…", "input": "…", "output": "…"}, with or without the input and a "system" text."""

from typing import Any

from worker.data.formats.turns import Turn, check_turns
from worker.data.rows import RowRefused

DESCRIPTION = 'alpaca: "instruction", "output" and, if needed, "input"'


def matches(fields: dict[str, Any]) -> bool:
    return "instruction" in fields and "output" in fields


def normalise(fields: dict[str, Any]) -> list[Turn]:
    """The input follows the instruction after an empty line, both as the user's turn."""
    texts = {}
    for name in ("system", "instruction", "input", "output"):
        value = fields.get(name)
        if not isinstance(value, str | None):
            raise RowRefused("wrong_type", f"{name!r} is not a text.")
        texts[name] = value or ""
    if fields.get("instruction") is None:
        raise RowRefused("unknown_format", 'The row has no "instruction".')
    if fields.get("output") is None:
        raise RowRefused("no_answer", 'The row has no "output".')
    question = "\n\n".join(text for text in (texts["instruction"], texts["input"]) if text)
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": texts["output"]}]
    if texts["system"]:
        turns.insert(0, {"role": "system", "content": texts["system"]})
    return check_turns(turns)
