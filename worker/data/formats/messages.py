"""OpenAI's chat form: {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}."""

from typing import Any

from worker.data.formats.turns import Conversation, find_turns, read_conversation
from worker.data.rows import RowRefused

DESCRIPTION = 'messages: "messages", a list of {"role": "user" or "assistant", "content": "…"}'


def matches(fields: dict[str, Any]) -> bool:
    turns = find_turns(fields) or []
    return bool(turns) and isinstance(turns[0], dict) and turns[0].get("role") is not None


def normalise(fields: dict[str, Any]) -> Conversation:
    turns = find_turns(fields)
    if turns is None:
        raise RowRefused("unknown_format", 'The row has no list under "messages".')
    return read_conversation(fields, turns)
