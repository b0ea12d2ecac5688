"""The tools that a row declares and the calls in its turns, in the one form that chat templates take."""

import json
from typing import Any

from worker.data.rows import RowRefused


def read_tools(fields: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The declared tools, each as {"type": "function", "function": {"name", …}}; None if there are none.

    The column is a list or its JSON text, as many data sets keep it because Arrow would fill each tool with the keys of all.
    """
    declared = fields.get("tools") or fields.get("functions")
    tools = parse(declared) if isinstance(declared, str) else declared
    if isinstance(tools, dict):
        tools = [tools]
    if declared in (None, "null") or tools == []:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RowRefused("wrong_type", '"tools" is neither a list of objects nor the JSON text of one.')
    result = [
        clean(tool if isinstance(tool.get("function"), dict) else {"type": "function", "function": tool}) for tool in tools
    ]
    for tool in result:
        if not isinstance(tool["function"].get("name"), str):
            raise RowRefused("wrong_type", 'A tool has no "name".')
    return result


def read_calls(turn: dict[str, Any], number: int) -> list[dict[str, Any]] | None:
    """The calls of an OpenAI turn, also the single one under its older name `function_call`; None if there are none."""
    calls = turn.get("tool_calls")
    if not calls and turn.get("function_call"):
        calls = [turn["function_call"]]
    if not calls:
        return None
    read = [read_call(call) for call in calls] if isinstance(calls, list) else [None]
    if None in read:
        raise RowRefused("wrong_type", f"A tool call of turn {number} is not an object with a name and arguments in JSON.")
    return read  # type: ignore[return-value]


def write_calls(text: str) -> list[dict[str, Any]] | None:
    """The calls that a text is the JSON of: an object with a name and arguments, or a list of such; else None."""
    value = parse(text)
    calls = value if isinstance(value, list) else [value]
    read = [read_call(call) for call in calls]
    return None if None in read or not read else read  # type: ignore[return-value]


def read_call(call: Any) -> dict[str, Any] | None:
    """One call with its arguments as an object: templates write JSON themselves, and would write a text's quotes twice."""
    inner = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        return None
    given = inner.get("arguments", inner.get("parameters", {}))
    arguments = parse(given or "{}") if isinstance(given, str) else clean(given or {})
    if not isinstance(arguments, dict):
        return None
    identity = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return clean({**identity, "type": "function", "function": {"name": inner["name"], "arguments": arguments}}, nulls=True)


def parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def clean(value: Any, *, nulls: bool = False) -> Any:
    """The value as JSON that any template can write, or RowRefused. Without `nulls`, keys that hold none are left out: Arrow
    fills every object of a column with the keys of all others."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except UnicodeEncodeError as problem:
        raise RowRefused("invalid_text", "A tool or a call is not valid Unicode.") from problem
    except (TypeError, ValueError) as problem:
        raise RowRefused("wrong_type", f"A tool or a call is not JSON: {problem}.") from problem
    return json.loads(text, object_hook=None if nulls else without_nulls)


def without_nulls(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}
