"""{"prompt": "…", "completion": "…"}, as texts or as lists of turns. Only the completion is learned."""

from typing import Any

from worker.data.formats.tools import read_tools
from worker.data.formats.turns import Conversation, as_list, check_turns, exchange, read_text, read_turns
from worker.data.rows import RowRefused

DESCRIPTION = 'prompt_completion: "prompt" and "completion"'


def matches(fields: dict[str, Any]) -> bool:
    return "prompt" in fields and "completion" in fields


def normalise(fields: dict[str, Any]) -> Conversation:
    if fields.get("prompt") is None:
        raise RowRefused("unknown_format", 'The row has no "prompt".')
    if fields.get("completion") is None:
        raise RowRefused("no_answer", 'The row has no "completion".')
    prompt, completion = as_list(fields["prompt"]), as_list(fields["completion"])
    if prompt is None or completion is None:
        return exchange(fields, read_text(fields, "prompt"), read_text(fields, "completion"))
    (asked, _), (answered, untrained) = read_turns(prompt), read_turns(completion)
    context = [index for index, turn in enumerate(asked) if turn["role"] == "assistant"]
    turns = check_turns([*asked, *answered])
    if not asked or not answered:
        raise RowRefused("no_turns", "The prompt or the completion has no turns.")
    unlearned = frozenset(context) | {len(asked) + index for index in untrained}
    if all(index in unlearned for index, turn in enumerate(turns) if turn["role"] == "assistant"):
        raise RowRefused("nothing_trained", "Nothing in the completion is to be learned.")
    return Conversation(turns, read_tools(fields), unlearned)
