"""ShareGPT: {"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}]}."""

from typing import Any

from worker.data.formats.turns import Conversation, find_turns, read_conversation
from worker.data.rows import RowRefused

DESCRIPTION = 'sharegpt: "conversations", a list of {"from": "human" or "gpt", "value": "…"}'


def matches(fields: dict[str, Any]) -> bool:
    turns = find_turns(fields) or []
    return bool(turns) and isinstance(turns[0], dict) and turns[0].get("from") is not None


def normalise(fields: dict[str, Any]) -> Conversation:
    turns = find_turns(fields)
    if turns is None:
        raise RowRefused("unknown_format", 'The row has no list under "conversations".')
    return read_conversation(fields, turns)
