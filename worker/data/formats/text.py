"""Plain text: {"text": "…"}."""

from typing import Any

from worker.data.formats.turns import check_text
from worker.data.rows import RowRefused

DESCRIPTION = 'text: "text"'


def matches(fields: dict[str, Any]) -> bool:
    return "text" in fields


def normalise(fields: dict[str, Any]) -> str:
    if "text" not in fields:
        raise RowRefused("unknown_format", 'The row has no "text".')
    text = check_text(fields["text"], '"text"')
    if not text.strip():
        raise RowRefused("empty_text", "The text is empty.")
    return text
