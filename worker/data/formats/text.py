"""Plain text: {"text": "…"}."""

from typing import Any

from worker.data.formats.turns import check_text
from worker.data.rows import RowRefused

DESCRIPTION = 'text: "text"'


def matches(fields: dict[str, Any]) -> bool:
    return "text" in fields


def normalise(fields: dict[str, Any]) -> str:
    text = fields.get("text")
    if "text" not in fields:
        raise RowRefused("unknown_format", 'The row has no "text".')
    if not isinstance(text, str):
        raise RowRefused("wrong_type", '"text" is not a text.')
    if not text.strip():
        raise RowRefused("empty_text", "The text is empty.")
    check_text(text, "The text")
    return text
