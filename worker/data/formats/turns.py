"""What every conversation must be, whatever its rows looked like."""

import json
from typing import Any, NamedTuple

from worker.data.formats.tools import read_calls, read_tools, write_calls
from worker.data.rows import RowRefused

Turn = dict[str, Any]
"""What the chat template is given: `role` (system, user, assistant or tool) and `content`, a text. An assistant's may have
`tool_calls` as OpenAI writes them, with the arguments as an object, and `reasoning_content`; with `text`, what was called is
also there as the row wrote it. A tool's may have the `name` and the `tool_call_id` that it answers."""

CONVERSATION_FIELDS = ("conversations", "messages", "conversation", "texts")
CALL = "function_call"
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    CALL: CALL,
    "tool_call": CALL,
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "ipython": "tool",
}
UNSUPPORTED_FIELDS = ("audio", "refusal", "images", "image")


class Conversation(NamedTuple):
    """Turns that end with an answer. `untrained` are the numbers, from 0, of the answers that are shown and not learned."""

    turns: list[Turn]
    tools: list[dict[str, Any]] | None = None
    untrained: frozenset[int] = frozenset()


class Preference(NamedTuple):
    """Two conversations that are equal in their first `shared` turns and then differ; what is shared is not learned."""

    chosen: Conversation
    rejected: Conversation
    shared: int


def find_turns(fields: dict[str, Any]) -> list | None:
    """The first list in a row under one of the names that conversations have; CSV holds it as JSON text."""
    for name in CONVERSATION_FIELDS:
        if (turns := as_list(fields.get(name))) is not None:
            return turns
    return None


def as_list(value: Any) -> list | None:
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, list) else None


def read_conversation(fields: dict[str, Any], turns: list) -> Conversation:
    """The row's conversation in our form, with its `system` text and `tools`. RowRefused if it cannot be trained on."""
    if not turns:
        raise RowRefused("no_turns", "The conversation has no turns.")
    read, untrained = read_turns(turns)
    system = read_text(fields, "system")
    if system and read[0]["role"] != "system":
        read, untrained = [{"role": "system", "content": system}, *read], frozenset(index + 1 for index in untrained)
    check_turns(read)
    if all(index in untrained for index, turn in enumerate(read) if turn["role"] == "assistant"):
        raise RowRefused("nothing_trained", "Every answer has the weight 0.")
    return Conversation(read, read_tools(fields), untrained)


def read_turns(turns: list) -> tuple[list[Turn], frozenset[int]]:
    """The turns in our form, each checked by itself, and the numbers of those with the weight 0."""
    result: list[Turn] = []
    untrained = set()
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise RowRefused("wrong_type", f"Turn {number} is not an object.")
        read, weightless = read_turn(turn, number), is_untrained(turn, number)
        last = result[-1] if result else {}
        follows = last.get("role") == "assistant" and "tool_calls" not in last
        if "text" in read and follows and weightless == (len(result) - 1 in untrained):
            # ShareGPT writes what is said before a call, and the call, as two turns.
            result[-1] = last | {"tool_calls": read["tool_calls"], "text": f"{last['content']}\n{read['text']}"}
            continue
        if weightless:
            untrained.add(len(result))
        result.append(read)
    return result, frozenset(untrained)


def read_turn(turn: dict[str, Any], number: int) -> Turn:
    role_key = "from" if turn.get("from") is not None else "role"
    name = turn.get(role_key)
    if not isinstance(name, str):
        raise RowRefused("wrong_type", f"Turn {number} has no text under 'role' or 'from'.")
    role = ROLES.get(name) or ROLES.get(name.strip().lower())
    if role is None:
        raise RowRefused("unknown_role", f"Turn {number} has the role {name[:40]!r}.")
    if unsupported := [field for field in UNSUPPORTED_FIELDS if turn.get(field)]:
        raise RowRefused("unsupported_field", f"Turn {number} has {unsupported[0]!r}, which cannot be trained on.")
    content = read_content(turn, number)
    if role == CALL:
        return read_calling_turn(content or "", number)
    calls = read_calls(turn, number) if role == "assistant" else None
    if content is None and not calls:
        raise RowRefused("wrong_type", f"Turn {number} has no text under 'content' or 'value'.")
    result: Turn = {"role": role, "content": content or ""}
    if calls:
        result["tool_calls"] = calls
    for field in {"assistant": ("reasoning_content",), "tool": ("name", "tool_call_id")}.get(role, ()):
        if turn.get(field):
            result[field] = check_text(turn[field], f"{field!r} of turn {number}")
    return result


def read_calling_turn(text: str, number: int) -> Turn:
    """A ShareGPT turn that holds nothing but calls. One that is not JSON is learned as the text that it is."""
    calls = write_calls(text)
    check_text(text, f"Turn {number}")
    if calls is None:
        return {"role": "assistant", "content": text}
    return {"role": "assistant", "content": "", "tool_calls": calls, "text": text}


def read_content(turn: dict[str, Any], number: int) -> str | None:
    """A text, or a list of OpenAI's parts of which all are texts."""
    content = turn["content"] if turn.get("content") is not None else turn.get("value")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
        if not all(isinstance(part, str) for part in parts):
            raise RowRefused("unsupported_field", f"Turn {number} has a part that is not a text.")
        content = "".join(str(part) for part in parts)
    return None if content is None else check_text(content, f"Turn {number}")


def is_untrained(turn: dict[str, Any], number: int) -> bool:
    weight = turn.get("weight")
    if weight is None:
        return False
    if not isinstance(weight, int | float) or weight not in (0, 1):
        raise RowRefused("unsupported_field", f"The weight of turn {number} is {str(weight)[:40]!r}; it can be 0 or 1.")
    return weight == 0


def read_text(fields: dict[str, Any], name: str) -> str:
    """The text under `name`, empty if there is none."""
    value = fields.get(name)
    return "" if value is None else check_text(value, repr(name))


def exchange(fields: dict[str, Any], question: str, answer: str) -> Conversation:
    """A question and its answer, after the row's `system` text if it has one."""
    system = read_text(fields, "system")
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    if system:
        turns.insert(0, {"role": "system", "content": system})
    return Conversation(check_turns(turns))


def check_turns(turns: list[Turn]) -> list[Turn]:
    """The same turns, or RowRefused."""
    before = "system"
    for number, turn in enumerate(turns, 1):
        role = turn["role"]
        if role == "system" and number > 1:
            raise RowRefused("misplaced_system", f"Turn {number} is a system turn; only the first can be.")
        if role == "tool" and before not in ("assistant", "tool"):
            raise RowRefused("misplaced_tool", f"Turn {number} is a tool's result, but nothing called a tool before it.")
        if role == "assistant" and before == "assistant":
            raise RowRefused("repeated_answer", f"Turn {number} is an answer right after an answer.")
        if role == "assistant" and before == "system":
            raise RowRefused("no_question", "The first turn is an answer: nothing asks for it.")
        if role == "assistant" and not (turn["content"].strip() or turn.get("tool_calls")):
            raise RowRefused("empty_answer", f"Turn {number}, an answer, has no text.")
        before = role
    if before != "assistant":
        raise RowRefused("no_answer", f"The last turn is the {before}'s: nothing answers it.")
    return turns


def check_text(text: Any, what: str) -> str:
    """The same text; RowRefused if it is none, or one that no tokenizer takes: broken bytes, or halves of surrogate pairs."""
    if not isinstance(text, str):
        raise RowRefused("wrong_type", f"{what} is not a text.")
    try:
        text.encode()
    except UnicodeEncodeError as problem:
        raise RowRefused("invalid_text", f"{what} is not valid Unicode at character {problem.start + 1}.") from problem
    return text
