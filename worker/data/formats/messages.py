"""OpenAI's chat form: {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}."""

from typing import Any

from worker.data.formats.turns import Turn, find_turns, read_turns
from worker.data.rows import RowRefused

DESCRIPTION = 'messages: "messages", a list of {"role": "user" or "assistant", "content": "…"}'
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def matches(fields: dict[str, Any]) -> bool:
    turns = find_turns(fields) or []
    return bool(turns) and isinstance(turns[0], dict) and "role" in turns[0]


def normalise(fields: dict[str, Any]) -> list[Turn]:
    turns = find_turns(fields)
    if turns is None:
        raise RowRefused("unknown_format", 'The row has no list under "messages".')
    if fields.get("tools") or fields.get("functions"):
        raise RowRefused("unsupported_field", "The row declares tools, which cannot be trained on.")
    return read_turns(turns, role_key="role", content_key="content", roles=ROLES)
