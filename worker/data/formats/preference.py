"""Two answers to one prompt, the better and the worse: {"prompt", "chosen", "rejected"} in its many forms.

The prompt is a text or a list of turns, or a conversation, an instruction, a question. The answers are texts, turns, lists of
turns, or whole conversations that begin with the prompt. OpenAI's form is {"input": {"messages"}, "preferred_output",
"non_preferred_output"}.
"""

from typing import Any

from worker.data.formats.tools import read_tools
from worker.data.formats.turns import Conversation, Preference, Turn, as_list, check_turns, find_turns, read_text, read_turns
from worker.data.rows import RowRefused

DESCRIPTION = 'preference: "prompt", "chosen" and "rejected"'
PAIRS = (("chosen", "rejected"), ("preferred_output", "non_preferred_output"))


def matches(fields: dict[str, Any]) -> bool:
    return any(chosen in fields and rejected in fields for chosen, rejected in PAIRS)


def normalise(fields: dict[str, Any]) -> Preference:
    """RowRefused also for answers that are equal, or whose prompts are not."""
    names = next((pair for pair in PAIRS if all(fields.get(name) is not None for name in pair)), None)
    if names is None:
        raise RowRefused("no_answer", 'The row does not have both a "chosen" and a "rejected" answer.')
    prompt, tools = read_prompt(fields)
    chosen, rejected = (read_answer(fields[name], prompt, name) for name in names)
    if (system := read_text(fields, "system")) and all(turns[0]["role"] != "system" for turns in (chosen, rejected)):
        chosen, rejected = ([{"role": "system", "content": system}, *turns] for turns in (chosen, rejected))
    shared = count_shared(check_turns(chosen), check_turns(rejected))
    if shared == len(chosen) == len(rejected):
        raise RowRefused("equal_answers", "The chosen and the rejected answer are equal.")
    if any(turns[shared : shared + 1] == [] or turns[shared]["role"] != "assistant" for turns in (chosen, rejected)):
        raise RowRefused("different_prompts", "The chosen and the rejected answer do not answer the same prompt.")
    untrained = frozenset(range(shared))
    return Preference(Conversation(chosen, tools, untrained), Conversation(rejected, tools, untrained), shared)


def read_prompt(fields: dict[str, Any]) -> tuple[list[Turn], list[dict[str, Any]] | None]:
    """The turns before the answers, none if the answers bring them along, and the tools."""
    source = fields["input"] if isinstance(fields.get("input"), dict) else fields
    given = find_turns(source)
    if given is None:
        given = as_list(source.get("prompt"))
    if given is not None:
        turns, _ = read_turns(given)
    else:
        name = next((name for name in ("prompt", "question", "instruction") if source.get(name) is not None), "")
        texts = [read_text(source, name), read_text(source, "input") if name == "instruction" else ""]
        turns = [{"role": "user", "content": "\n\n".join(filter(None, texts))}] if name else []
    return turns, read_tools(source)


def read_answer(answer: Any, prompt: list[Turn], name: str) -> list[Turn]:
    """The whole conversation with this answer. One that begins with turns of its own is whole already."""
    given = [answer] if isinstance(answer, dict) else as_list(answer)
    if given is None:
        turns: list[Turn] = [{"role": "assistant", "content": read_text({name: answer}, name)}]
    else:
        turns, _ = read_turns(given)
    if not turns:
        raise RowRefused("no_answer", f"{name!r} has no turns.")
    if turns[0]["role"] != "assistant":
        return turns
    if not prompt:
        raise RowRefused("no_question", 'The row has no "prompt", and its answers do not begin with one.')
    return [*prompt, *turns]


def count_shared(chosen: list[Turn], rejected: list[Turn]) -> int:
    """How many turns are equal from the start on."""
    pairs = enumerate(zip(chosen, rejected, strict=False))
    return next((index for index, (one, other) in pairs if one != other), min(len(chosen), len(rejected)))
