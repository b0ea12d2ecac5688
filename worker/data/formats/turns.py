"""What every conversation must be, whatever its rows looked like."""

from collections.abc import Mapping
from typing import Any

from worker.data.rows import RowRefused

Turn = dict[str, str]
"""`role` (system, user or assistant) and `content`."""

CONVERSATION_FIELDS = ("conversations", "messages", "conversation", "texts")
UNSUPPORTED_FIELDS = ("tool_calls", "function_call", "weight")


def find_turns(fields: dict[str, Any]) -> list | None:
    """The first list in a row under one of the names that conversations have."""
    return next((fields[name] for name in CONVERSATION_FIELDS if isinstance(fields.get(name), list)), None)


def read_turns(turns: list, *, role_key: str, content_key: str, roles: Mapping[str, str]) -> list[Turn]:
    """The conversation in our form; `roles` gives our name of each role. RowRefused if it cannot be trained on."""
    if not turns:
        raise RowRefused("no_turns", "The conversation has no turns.")
    result = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict) or not isinstance(turn.get(role_key), str):
            raise RowRefused("wrong_type", f"Turn {number} is not an object with a text under {role_key!r}.")
        role = roles.get(turn[role_key])
        if role is None:
            raise RowRefused("unknown_role", f"Turn {number} has the role {turn[role_key][:40]!r}.")
        if unsupported := [name for name in UNSUPPORTED_FIELDS if turn.get(name) is not None]:
            raise RowRefused("unsupported_field", f"Turn {number} has {unsupported[0]!r}, which cannot be trained on.")
        if not isinstance(turn.get(content_key), str):
            raise RowRefused("wrong_type", f"Turn {number} has no text under {content_key!r}.")
        result.append({"role": role, "content": turn[content_key]})
    return check_turns(result)


def check_turns(turns: list[Turn]) -> list[Turn]:
    """The same turns, or RowRefused."""
    for number, turn in enumerate(turns, 1):
        check_text(turn["content"], f"Turn {number}")
        if turn["role"] == "system" and number > 1:
            raise RowRefused("misplaced_system", f"Turn {number} is a system turn; only the first can be.")
        if turn["role"] == "assistant" and not turn["content"].strip():
            raise RowRefused("empty_answer", f"Turn {number}, an answer, has no text.")
    if turns[0]["role"] == "assistant":
        raise RowRefused("no_question", "The first turn is an answer: nothing asks for it.")
    if turns[-1]["role"] != "assistant":
        raise RowRefused("no_answer", f"The last turn is the {turns[-1]['role']}'s: nothing answers it.")
    return turns


def check_text(text: str, what: str) -> None:
    """RowRefused for text that no tokenizer takes: broken bytes, or halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError as problem:
        raise RowRefused("invalid_text", f"{what} is not valid Unicode at character {problem.start + 1}.") from problem
