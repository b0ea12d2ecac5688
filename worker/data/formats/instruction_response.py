"""A question and its answer under one of their usual names: {"instruction": "…", "response": "…"}."""

from typing import Any

from worker.data.formats.turns import Conversation, exchange, read_text
from worker.data.rows import RowRefused

DESCRIPTION = 'instruction_response: "instruction", "question", "query" or "prompt", and "response" or "answer"'
QUESTIONS = ("instruction", "question", "query", "prompt")
CONTEXTS = ("context", "input")
ANSWERS = ("response", "answer")


def matches(fields: dict[str, Any]) -> bool:
    return any(name in fields for name in QUESTIONS) and any(name in fields for name in ANSWERS)


def normalise(fields: dict[str, Any]) -> Conversation:
    """A context follows the question after an empty line, both as the user's turn."""
    question = next((name for name in QUESTIONS if fields.get(name) is not None), None)
    answer = next((name for name in ANSWERS if fields.get(name) is not None), None)
    if question is None:
        raise RowRefused("unknown_format", f"The row has none of {', '.join(QUESTIONS)}.")
    if answer is None:
        raise RowRefused("no_answer", f"The row has none of {', '.join(ANSWERS)}.")
    context = next((text for name in CONTEXTS if (text := read_text(fields, name))), "")
    asked = "\n\n".join(filter(None, (read_text(fields, question), context)))
    return exchange(fields, asked, read_text(fields, answer))
