"""Where the answers are in a conversation that a chat template has written: found by asking the template, not by its marks.

An answer is what the template adds to the prompt that asks for it. So it is right by construction, or it fails.
"""

from typing import NamedTuple

from worker.data.chat_templates import ChatTemplate
from worker.data.formats.turns import Conversation, Turn
from worker.data.rows import RowRefused

UNHEARD_OF = "7f3c9ad"
"""A word that stands in no data set, to see whether a template writes what it is in."""


class Rendered(NamedTuple):
    """A document as text, and in characters: the spans of the answers to train, from the end of the prompt to the start of the
    next turn; and the ends of all answers of this document that could be told."""

    text: str
    answers: list[tuple[int, int]]
    ends: list[int]


class UnstableTemplate(Exception):
    """The template writes a prompt differently once it is answered, and no other way was found to tell the answer."""


def render_answers(conversation: Conversation, template: ChatTemplate, stops: tuple[str, ...]) -> list[Rendered]:
    """The conversation as the fewest documents in which each answer stands after the very prompt that asks for it.

    One, if what the template writes up to each answer is a prefix of the whole. Some templates write earlier answers
    differently once the conversation goes on (without their reasoning), so that these need a document of their own.
    `stops` are the special tokens' texts. RowRefused, UnstableTemplate, Jinja's TemplateError.
    """
    turns, tools, untrained = conversation
    answers = [index for index, turn in enumerate(turns) if turn["role"] == "assistant"]
    documents: list[Rendered] = []
    whole = template.render(turns, tools)
    text = whole
    spans: list[tuple[int, int]] = []
    ends: list[int] = []
    for index in reversed(answers):
        prompt = template.render(turns[:index], tools, ask=True)
        require_written(conversation._replace(turns=turns[:index]), prompt, template)
        answered = whole if index == len(turns) - 1 else template.render(turns[: index + 1], tools)
        end = find_end(text, prompt, answered, stops)
        if end is None and index not in untrained:
            if spans:
                documents.append(Rendered(text, spans[::-1], ends[::-1]))
            text = answered if answered.startswith(prompt) else prompt + complete(turns, index, template)
            spans, ends, end = [], [], len(text)
        if end is not None:
            ends.append(end)
            if index not in untrained:
                spans.append((len(prompt), end))
    documents.append(Rendered(text, spans[::-1], ends[::-1]))
    return documents[::-1]


def find_end(text: str, prompt: str, answered: str, stops: tuple[str, ...]) -> int | None:
    """Where the answer ends in `text`; None if `text` does not begin with the prompt and this answer to it.

    What some templates write after the last turn alone, an end of text, does not count, as long as a stop token is left.
    """
    if not text.startswith(prompt):
        return None
    while not text.startswith(answered):
        stop = next((stop for stop in stops if answered.endswith(stop)), "")
        shorter = answered[: -len(stop)].rstrip() if stop else ""
        if len(shorter) <= len(prompt) or not shorter.endswith(stops):
            return None
        answered = shorter
    return len(answered) if len(answered) > len(prompt) else None


def complete(turns: list[Turn], index: int, template: ChatTemplate) -> str:
    """The answer as the template writes it after its question alone.

    For templates that write a conversation differently from any prompt: one puts the system text before the newest question
    only, and leaves it out once that is answered.
    """
    start = max((at for at, turn in enumerate(turns[:index]) if turn["role"] == "user"), default=0)
    asked, answered = (template.render(turns[start:stop], None, ask=stop == index) for stop in (index, index + 1))
    if not answered.startswith(asked):
        raise UnstableTemplate
    return answered[len(asked) :]


def require_written(conversation: Conversation, prompt: str, template: ChatTemplate) -> None:
    """RowRefused if the template has left a system text, or the tools' results that are answered next, out of a prompt."""
    turns, tools, _ = conversation
    for index in range(len(turns) - 1, -1, -1):
        role, content = turns[index]["role"], turns[index]["content"]
        if role == "assistant" and turns[0]["role"] != "system":
            return
        if role not in ("system", "tool") or content.strip() in prompt:
            continue
        changed = [*turns[:index], turns[index] | {"content": f"{content} {UNHEARD_OF}"}, *turns[index + 1 :]]
        if UNHEARD_OF not in template.render(changed, tools, ask=True):
            raise RowRefused("template_refused", f"The model's chat template leaves out turn {index + 1}, the {role}'s.")
