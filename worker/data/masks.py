"""Samples to tokens, and which of the tokens are trained: the answers and the token that ends each of them."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from jinja2 import TemplateError

from app.jobs.states import FailureCode
from worker.data.formats import Sample
from worker.data.formats.turns import Turn
from worker.data.rows import RowRefused
from worker.stages import StageFailure

GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Encoded(NamedTuple):
    """int32 [n] and bool [n]; and, where it is known, how many tokens there are up to the end of each answer."""

    input_ids: np.ndarray
    trained: np.ndarray
    answer_ends: list[int] | None = None


class Rendered(NamedTuple):
    """A conversation as the template writes it, and the character spans of its answers: from the end of the prompt that asks
    for one to the start of the next turn."""

    text: str
    answers: list[tuple[int, int]]


class UnstableTemplate(Exception):
    """The template writes the beginning of a conversation differently once it goes on, so no prompt is a prefix of it."""


class Encoder:
    """Encodes conversations by the tokenizer's chat template, and texts as they are.

    The tokenizer becomes the encoder's own: its post-processor is taken out, because that trims spaces from the character
    offsets on which the masks rest. What else it does, adding a BOS, is done here.
    """

    def __init__(self, tokenizer: Any, *, assistant_only: bool, eos_token_ids: set[int]):
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        bos = tokenizer.bos_token_id
        self._bos = bos if bos is not None and self._backend.encode("a").ids[0] == bos else None
        self._backend.post_processor = None
        self._assistant_only = assistant_only
        self._marked = bool(tokenizer.chat_template) and bool(GENERATION_MARK.search(tokenizer.get_chat_template()))
        added = tokenizer.added_tokens_decoder.items()
        self._special = {index for index, token in added if token.special} | set(tokenizer.all_special_ids)
        self._eos = eos_token_ids
        self._blank: dict[int, bool] = {}
        self.stop_token_ids = set(eos_token_ids)
        """The model's own, and every special token that was seen to end an answer."""
        self.unstopped = 0
        """Answers that no special token ends."""

    def encode(self, samples: Sequence[Sample]) -> list[Encoded | RowRefused]:
        """One for one, in order; all samples are conversations, or all are texts.

        StageFailure: model_unsupported without a chat template, invalid_spec if the template hides where answers begin.
        """
        if samples and isinstance(samples[0], str):
            return self._encode_texts(samples)
        results: list[Any] = [self._attempt(sample) for sample in samples]
        texts = [result.text for result in results if isinstance(result, Rendered)]
        encodings = iter(self._backend.encode_batch(texts, add_special_tokens=False))
        return [self._finish(item, next(encodings)) if isinstance(item, Rendered) else item for item in results]

    def encode_prompt(self, turns: list[Turn]) -> tuple[list[int], str]:
        """The prompt that asks for the answer after `turns`, as tokens and as text."""
        text = self._render(turns, add_generation_prompt=True)
        return [*self._missing_bos(ids := self._backend.encode(text, add_special_tokens=False).ids), *ids], text

    def find_answer_ends(self, turns: list[Turn]) -> list[int] | None:
        """The `answer_ends` of a conversation. None if the template does not let them be told."""
        try:
            rendered = self._render_answers(turns)
        except (UnstableTemplate, TemplateError):
            return None
        encoding = self._backend.encode(rendered.text, add_special_tokens=False)
        bos = len(self._missing_bos(encoding.ids))
        return [bos + token_at(encoding, end, len(rendered.text)) for _, end in rendered.answers]

    def count_tokens(self, turns: list[Turn]) -> int | None:
        """The length of a conversation. None if the template refuses it."""
        try:
            ids = self._backend.encode(self._render(turns), add_special_tokens=False).ids
        except TemplateError:
            return None
        return len(self._missing_bos(ids)) + len(ids)

    def _encode_texts(self, texts: Sequence[Any]) -> list[Encoded | RowRefused]:
        """All tokens of a text are trained, and one that ends it."""
        end = [] if self._tokenizer.eos_token_id is None else [self._tokenizer.eos_token_id]
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [self._mask(item.ids + end, [(0, len(item.ids) + 1)]) for item in encodings]

    def _attempt(self, turns: Any) -> Rendered | Encoded | RowRefused:
        if not self._tokenizer.chat_template:
            message = "The model has no chat template, so conversations cannot be written in its form."
            hint = "Use the model's instruct version, or rows of plain text."
            raise StageFailure(FailureCode.MODEL_UNSUPPORTED, message, hint=hint, param="base_model")
        try:
            if not self._assistant_only:
                return Rendered(self._render(turns), [])
            return self._encode_marked(turns) if self._marked else self._render_answers(turns)
        except TemplateError as problem:
            return RowRefused("template_refused", f"The model's chat template refuses the conversation: {problem}.")
        except UnstableTemplate:
            raise StageFailure(
                FailureCode.INVALID_SPEC,
                "The model's chat template writes a prompt differently once it is answered, which hides the answers.",
                hint="Set assistant_only_loss to false to train on all tokens or use a model whose template marks the answers.",
                param="training.assistant_only_loss",
                patch={"training": {"assistant_only_loss": False}},
            ) from None

    def _render(self, turns: list[Turn], **options: Any) -> str:
        return self._tokenizer.apply_chat_template(turns, tokenize=False, **options)

    def _render_answers(self, turns: list[Turn]) -> Rendered:
        """Each answer's span, told by writing the conversation up to it, which must give a prefix of the whole each time."""
        text = self._render(turns)
        answers = []
        for index, turn in enumerate(turns):
            if turn["role"] == "assistant":
                prompt = self._render(turns[:index], add_generation_prompt=True)
                answered = self._render(turns[: index + 1]) if index + 1 < len(turns) else text
                if not (answered.startswith(prompt) and text.startswith(answered)):
                    raise UnstableTemplate
                answers.append((len(prompt), len(answered)))
        return Rendered(text, answers)

    def _encode_marked(self, turns: list[Turn]) -> Encoded | RowRefused:
        """By the template's own marks, which often leave out the token that ends an answer."""
        encoding = self._tokenizer.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
        ids, mask = encoding["input_ids"], np.array([0, *encoding["assistant_masks"], 0])
        starts, ends = (np.flatnonzero(np.diff(mask) == edge).tolist() for edge in (1, -1))
        return self._mask(ids, [(start, self._reach_stop(ids, end)) for start, end in zip(starts, ends, strict=True)])

    def _reach_stop(self, ids: list[int], end: int) -> int:
        """`end`, or past the model's end token if only that and space follow."""
        stop = end
        while stop < len(ids) and self._is_blank(ids[stop]):
            stop += 1
        return stop + 1 if ids[end - 1] not in self._special and stop < len(ids) and ids[stop] in self._eos else end

    def _finish(self, rendered: Rendered, encoding: Any) -> Encoded | RowRefused:
        if not self._assistant_only:
            return self._mask(encoding.ids, [(0, len(encoding.ids))])
        spans = token_spans(rendered, encoding)
        if spans is None:
            return self._encode_in_pieces(rendered, encoding)
        return self._mask_answers(encoding.ids, spans)

    def _encode_in_pieces(self, rendered: Rendered, encoding: Any) -> Encoded | RowRefused:
        """Where one token would hold the end of a prompt and the start of its answer. The model never sees that token when it
        is asked, so prompts and answers are encoded one by one."""
        cuts = [0, *(cut for span in rendered.answers for cut in span), len(rendered.text)]
        pieces = [rendered.text[start:end] for start, end in pairwise(cuts)]
        encoded = [piece.ids for piece in self._backend.encode_batch(pieces, add_special_tokens=False)]
        ids = [index for piece in encoded for index in piece]
        if self._tokenizer.decode(ids) != self._tokenizer.decode(encoding.ids):
            return RowRefused("unstable_tokens", "The tokenizer joins the end of a prompt with the start of its answer.")
        offsets = np.cumsum([0, *map(len, encoded)])
        spans = [(int(offsets[number]), int(offsets[number + 1])) for number in range(1, len(encoded), 2)]
        return self._mask_answers(ids, spans)

    def _mask_answers(self, ids: list[int], spans: list[tuple[int, int]]) -> Encoded | RowRefused:
        encoded = self._mask(ids, self._trim(ids, spans))
        if isinstance(encoded, RowRefused):
            return encoded
        bos = len(encoded.input_ids) - len(ids)
        return encoded._replace(answer_ends=[bos + end for _, end in spans])

    def _trim(self, ids: list[int], spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Each answer ends with its last special token; the space that a template writes after that is not the model's."""
        trimmed = []
        for start, end in spans:
            stop = end
            while stop > start and self._is_blank(ids[stop - 1]):
                stop -= 1
            stopped = stop > start and ids[stop - 1] in self._special
            if stopped:
                self.stop_token_ids.add(ids[stop - 1])
            self.unstopped += not stopped
            trimmed.append((start, stop if stopped else end))
        return trimmed

    def _is_blank(self, index: int) -> bool:
        if index not in self._blank:
            self._blank[index] = self._tokenizer.decode([index]).isspace()
        return self._blank[index]

    def _mask(self, ids: list[int], spans: list[tuple[int, int]]) -> Encoded | RowRefused:
        """Arrays, with the BOS that the tokenizer wants and the template may have left out."""
        bos = self._missing_bos(ids)
        trained = np.zeros(len(bos) + len(ids), dtype=np.bool_)
        for start, end in spans:
            trained[len(bos) + start : len(bos) + end] = True
        if not trained[1:].any():
            return RowRefused("nothing_trained", "No token of the row would be trained.")
        return Encoded(np.array(bos + ids, dtype=np.int32), trained)

    def _missing_bos(self, ids: list[int]) -> list[int]:
        return [] if self._bos is None or ids[:1] == [self._bos] else [self._bos]


def token_spans(rendered: Rendered, encoding: Any) -> list[tuple[int, int]] | None:
    """The answers' spans in tokens; None where a token lies across the start or the end of one."""
    spans = []
    for start, end in rendered.answers:
        span = []
        for position in (start, end):
            token = token_at(encoding, position, len(rendered.text))
            if token < len(encoding.ids) and encoding.token_to_chars(token)[0] < position:
                return None
            span.append(token)
        spans.append((span[0], span[1]))
    return spans


def token_at(encoding: Any, position: int, length: int) -> int:
    """The token of the character at `position`, or of the next one that has a token; the number of tokens if none has."""
    while position < length:
        token = encoding.char_to_token(position)
        if token is not None:
            return token
        position += 1
    return len(encoding.ids)
