"""ShareGPT: {"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}]}."""

from typing import Any

from worker.data.formats.turns import Turn, find_turns, read_turns
from worker.data.rows import RowRefused

DESCRIPTION = 'sharegpt: "conversations", a list of {"from": "human" or "gpt", "value": "…"}'
ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
}


def matches(fields: dict[str, Any]) -> bool:
    turns = find_turns(fields) or []
    return bool(turns) and isinstance(turns[0], dict) and "from" in turns[0]


def normalise(fields: dict[str, Any]) -> list[Turn]:
    turns = find_turns(fields)
    if turns is None:
        raise RowRefused("unknown_format", 'The row has no list under "conversations".')
    return read_turns(turns, role_key="from", content_key="value", roles=ROLES)
