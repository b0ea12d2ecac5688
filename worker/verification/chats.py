"""Whether a prompt has the same tokens everywhere: where it was trained, in transformers, and in llama.cpp from the file."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from worker.data.formats import Sample
from worker.data.formats.turns import Conversation, Preference, Turn
from worker.data.masks import Encoder
from worker.verification.llama import Llama

QUESTION = {"role": "user", "content": "What is the capital of France?"}
ANSWER = {"role": "assistant", "content": "Paris, on the Seine."}
FIXED: list[list[Turn]] = [
    [QUESTION],
    [{"role": "system", "content": "Answer in one word."}, QUESTION],
    [QUESTION, ANSWER, {"role": "user", "content": "  Then translate:\n\n\t“Grüße, 世界! 🦙”  costs 1234.50 €"}],
    [{"role": "user", "content": "def f(x):\n    return [x ** 2 for _ in range(10)]  # isn't it 100%?\n"}],
]
TEXT = "Isn't it?  12345 tokens, ärgerlich — 世界\n\n\tend"


class Chat(NamedTuple):
    """A prompt as it was trained: its text, its token ids, and the turns and tools that it was made of, if they are known."""

    text: str
    ids: list[int]
    turns: list[Turn] | None = None
    tools: list[dict[str, Any]] | None = None


def collect_chats(encoder: Encoder, held_out: Iterable[dict[str, Any]], samples: Iterable[Sample]) -> Iterator[Chat]:
    """The held-out prompts as training had them, the prompts and texts of `samples`, a few fixed ones that the chat template
    takes, and a fixed text."""
    for line in held_out:
        yield Chat(line["prompt"], line["prompt_ids"])
    for sample in [*samples, TEXT]:
        if isinstance(sample, str):
            yield from as_text(encoder, sample)
        else:
            conversation = sample.chosen if isinstance(sample, Preference) else sample
            yield from as_prompt(encoder, conversation._replace(turns=conversation.turns[:-1]))
    for turns in FIXED:
        yield from as_prompt(encoder, Conversation(turns))


def as_prompt(encoder: Encoder, asked: Conversation) -> Iterator[Chat]:
    prompt = encoder.encode_prompt(asked, asked.turns)
    if prompt is not None:
        adapted = encoder.template.adapt(asked)
        yield Chat(prompt[1], prompt[0], adapted.turns, adapted.tools)


def as_text(encoder: Encoder, text: str) -> Iterator[Chat]:
    """Without the EOS that ends it in training."""
    [documents] = encoder.encode([text])
    if isinstance(documents, list):
        ids = documents[0].input_ids.tolist()
        yield Chat(text, ids[:-1] if ids[-1] in encoder.stop_token_ids else ids)


def find_stop(encoder: Encoder, *, texts: bool) -> int | None:
    """The token that training has ended answers with, or `texts`; None if the template ends them with no special token."""
    [documents] = encoder.encode([TEXT if texts else Conversation([QUESTION, ANSWER])])
    if not isinstance(documents, list):
        return None
    last = documents[-1]
    token = int(last.input_ids[last.trained.nonzero()[0][-1]])
    return token if token in encoder.stop_token_ids else None


def check_tokens(chats: list[Chat], tokenizer: Any, llama: Llama, bos: int | None) -> Iterator[str]:
    """What is wrong, in sentences. `tokenizer` is the published one in transformers, `bos` the token
    that begins every document in training."""
    for chat in chats:
        begins = bool(tokenizer.bos_token) and chat.text.startswith(tokenizer.bos_token)
        theirs = tokenizer(chat.text, add_special_tokens=not begins)["input_ids"]
        if chat.turns is not None and render(tokenizer, chat, None) != chat.text:
            yield f"transformers writes the prompt {shorten(chat.text)} in other words than it was trained with"
            return
        if theirs != chat.ids:
            yield f"transformers has other tokens than training for {shorten(chat.text)}: {differ(chat.ids, theirs)}"
            return
        text = chat.text if chat.turns is None or llama.template is None else render(tokenizer, chat, llama.template)
        if llama.adds_bos and begins:
            text = text.removeprefix(tokenizer.bos_token)  # as llama.cpp does with what its chat template has written
        found = llama.tokenize(text)
        if bos is not None and (found[:1] != [bos] or found[1:2] == [bos]):
            yield f"a prompt begins with the tokens {found[:2]}, not with one BOS, {bos}"
            return
        if found != chat.ids:
            yield f"llama.cpp has other tokens than training for {shorten(chat.text)}: {differ(chat.ids, found)}"
            return


def render(tokenizer: Any, chat: Chat, template: str | None) -> str:
    return str(
        tokenizer.apply_chat_template(
            chat.turns, tools=chat.tools, chat_template=template, tokenize=False, add_generation_prompt=True
        )
    )


def differ(expected: list[int], found: list[int]) -> str:
    pairs = zip(expected, found, strict=False)
    place = next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(expected), len(found)))
    return f"from token {place} on {found[place : place + 4]} in place of {expected[place : place + 4]}"


def shorten(text: str, most: int = 40) -> str:
    return repr(text if len(text) <= most else f"{text[:most]}…")
