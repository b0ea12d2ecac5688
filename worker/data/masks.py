"""Samples to tokens, and which of the tokens are trained: the answers and the token that ends each of them."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from jinja2 import TemplateError

from app.jobs.states import FailureCode
from worker.data.answers import Rendered, UnstableTemplate, render_answers, require_written
from worker.data.chat_templates import ChatTemplate
from worker.data.formats import Sample
from worker.data.formats.turns import Conversation, Preference, Turn
from worker.data.rows import RowRefused
from worker.stages import StageFailure

MOST_TAILS = 1000


class Encoded(NamedTuple):
    """int32 [n] and bool [n]; and, where it is known, how many tokens there are up to the end of each answer."""

    input_ids: np.ndarray
    trained: np.ndarray
    answer_ends: list[int] | None = None


class Encoder:
    """Encodes conversations by the tokenizer's chat template, and texts as they are.

    The tokenizer becomes the encoder's own: it is given a template if it has none, and its post-processor is taken out, because
    that trims spaces from the character offsets on which the masks rest. What else it does, adding a BOS, is done here.
    """

    def __init__(self, tokenizer: Any, *, assistant_only: bool, eos_token_ids: set[int], whole: bool = False):
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        bos = tokenizer.bos_token_id
        self.bos = bos if bos is not None and self._backend.encode("a").ids[0] == bos else None
        """The token that begins every document, None if the model has none."""
        self._backend.post_processor = None
        self._assistant_only = assistant_only and not whole
        self.whole = whole
        """All tokens are trained, of conversations too, and what ends a text ends them."""
        self.template = ChatTemplate.of(tokenizer)
        added = tokenizer.added_tokens_decoder.items()
        self._special = {index for index, token in added if token.special} | set(tokenizer.all_special_ids)
        self._stops = tuple(token for token in tokenizer.convert_ids_to_tokens(sorted(self._special)) if token)
        self._blank: dict[int, bool] = {}
        self._tails: dict[str, list[int]] = {}
        self.stop_token_ids = set(eos_token_ids)
        """The model's own, and every special token that was seen to end an answer."""
        self.unstopped = 0
        """Answers that no special token ends."""

    def facts(self) -> dict[str, Any]:
        """What decides how conversations become tokens: {source, family, sha256, bos_token_id, stop_token_ids}."""
        return self.template.facts() | {"bos_token_id": self.bos, "stop_token_ids": sorted(self.stop_token_ids)}

    def encode(self, samples: Sequence[Sample]) -> list[list[Encoded] | RowRefused]:
        """The documents of each sample, one for one, in order; all samples are of one kind.

        Most have one. A conversation has several where its template writes an answer differently once the conversation goes
        on: each answer is then trained after the prompt that asks for it. A preference has two, the chosen one first, with the
        same tokens up to the first answer that differs. StageFailure invalid_spec if the template hides where answers begin.
        """
        if samples and isinstance(samples[0], str):
            return self._encode_texts(samples)
        rendered = [self._attempt(sample) for sample in samples]
        texts = [document.text for item in rendered if isinstance(item, list) for document in item]
        encodings = iter(self._backend.encode_batch(texts, add_special_tokens=False))
        return [
            self._finish(sample, item, [next(encodings) for _ in item]) if isinstance(item, list) else item
            for sample, item in zip(samples, rendered, strict=True)
        ]

    def encode_prompt(self, conversation: Conversation, turns: list[Turn]) -> tuple[list[int], str] | None:
        """The prompt that asks for the answer after `turns`, as tokens and as text. None if the template refuses it."""
        try:
            adapted = self.template.adapt(conversation._replace(turns=turns))
            text = self.template.render(adapted.turns, adapted.tools, ask=True)
        except (RowRefused, TemplateError):
            return None
        ids = self._backend.encode(text, add_special_tokens=False).ids
        return [*self._missing_bos(ids), *ids], text

    def decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids))

    def find_answer_ends(self, conversation: Conversation) -> list[int] | None:
        """The `answer_ends` of a conversation that is one document. None if the template does not let them be told."""
        try:
            adapted = self.template.adapt(conversation)._replace(untrained=frozenset())
            [rendered] = render_answers(adapted, self.template, self._stops)
        except (UnstableTemplate, TemplateError, ValueError):
            return None
        encoding = self._backend.encode(rendered.text, add_special_tokens=False)
        return self._ends(rendered, encoding, len(self._missing_bos(encoding.ids)))

    def _encode_texts(self, texts: Sequence[Any]) -> list[list[Encoded] | RowRefused]:
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        masked = [self._mask_ended(item.ids) for item in encodings]
        return [[item] if isinstance(item, Encoded) else item for item in masked]

    def _mask_ended(self, ids: list[int]) -> Encoded | RowRefused:
        """All tokens are trained, and the EOS after them, unless a special token ends them already."""
        eos = self._tokenizer.eos_token_id
        last = next((index for index in reversed(ids) if not self._is_blank(index)), None)
        ended = ids if eos is None or last in self._special else [*ids, eos]
        return self._mask(ended, [(0, len(ended))])

    def _attempt(self, sample: Any) -> list[Rendered] | RowRefused:
        try:
            if isinstance(sample, Preference):
                pair = [render_answers(self.template.adapt(side), self.template, self._stops) for side in sample[:2]]
                if any(len(documents) != 1 for documents in pair):
                    return RowRefused("template_refused", "The model's chat template does not write all answers in one piece.")
                return pair[0] + pair[1]
            conversation = self.template.adapt(sample)
            if self._assistant_only:
                return render_answers(conversation, self.template, self._stops)
            asked = conversation._replace(turns=conversation.turns[:-1])
            require_written(asked, self.template.render(asked.turns, asked.tools, ask=True), self.template)
            return [Rendered(self.template.render(conversation.turns, conversation.tools), [], [])]
        except RowRefused as refused:
            return refused
        except TemplateError as problem:
            return RowRefused("template_refused", f"The model's chat template refuses the conversation: {problem}.")
        except UnstableTemplate:
            raise StageFailure(
                FailureCode.INVALID_SPEC,
                "The model's chat template writes a prompt differently once it is answered, which hides the answers.",
                hint="Set assistant_only_loss to false to train on all tokens, or use another model.",
                param="training.assistant_only_loss",
                patch={"training": {"assistant_only_loss": False}},
            ) from None

    def _finish(self, sample: Any, rendered: list[Rendered], encodings: list[Any]) -> list[Encoded] | RowRefused:
        results = [self._encode(*item) for item in zip(rendered, encodings, strict=True)]
        refused = next((item for item in results if isinstance(item, RowRefused)), None)
        if refused is None and isinstance(sample, Preference) and not begin_alike(results):
            refused = unstable_tokens()
        return refused or [item for item in results if isinstance(item, Encoded)]

    def _encode(self, rendered: Rendered, encoding: Any) -> Encoded | RowRefused:
        if self.whole:
            return self._mask_ended(encoding.ids)
        if not rendered.answers:
            return self._mask(encoding.ids, [(0, len(encoding.ids))])
        spans = token_spans(rendered, encoding)
        if spans is None or not self._asks_alike(rendered, encoding, spans):
            return self._encode_in_pieces(rendered, encoding)
        encoded = self._mask(encoding.ids, self._trim(encoding.ids, spans))
        if isinstance(encoded, RowRefused):
            return encoded
        return encoded._replace(answer_ends=self._ends(rendered, encoding, len(encoded.input_ids) - len(encoding.ids)))

    def _asks_alike(self, rendered: Rendered, encoding: Any, spans: list[tuple[int, int]]) -> bool:
        """Whether each prompt has the tokens that it has when nothing follows it. Only space at its end can make a difference,
        and only what follows the last special token matters."""
        ids = encoding.ids
        for (position, _), (token, _) in zip(rendered.answers, spans, strict=True):
            if not rendered.text[position - 1].isspace():
                continue
            start = token
            while start > 0 and ids[start - 1] not in self._special:
                start -= 1
            tail = rendered.text[encoding.token_to_chars(start)[0] : position] if start < token else ""
            if tail not in self._tails:
                if len(self._tails) == MOST_TAILS:
                    self._tails.clear()
                self._tails[tail] = self._backend.encode(tail, add_special_tokens=False).ids
            if ids[start:token] != self._tails[tail]:
                return False
        return True

    def _ends(self, rendered: Rendered, encoding: Any, bos: int) -> list[int]:
        return [bos + token_at(encoding, end, len(rendered.text)) for end in rendered.ends]

    def _encode_in_pieces(self, rendered: Rendered, encoding: Any) -> Encoded | RowRefused:
        """Where one token would hold the end of a prompt and the start of its answer. The model never sees that token when it
        is asked, so prompts and answers are encoded one by one."""
        cuts = [0, *(cut for span in rendered.answers for cut in span), len(rendered.text)]
        pieces = [rendered.text[start:end] for start, end in pairwise(cuts)]
        encoded = [piece.ids for piece in self._backend.encode_batch(pieces, add_special_tokens=False)]
        ids = [index for piece in encoded for index in piece]
        if self._tokenizer.decode(ids) != self._tokenizer.decode(encoding.ids):
            return unstable_tokens()
        offsets = np.cumsum([0, *map(len, encoded)])
        spans = [(int(offsets[number]), int(offsets[number + 1])) for number in range(1, len(encoded), 2)]
        masked = self._mask(ids, self._trim(ids, spans))
        if isinstance(masked, RowRefused) or len(spans) != len(rendered.ends):
            return masked
        bos = len(masked.input_ids) - len(ids)
        return masked._replace(answer_ends=[bos + end for _, end in spans])

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
        return [] if self.bos is None or ids[:1] == [self.bos] else [self.bos]


def begin_alike(results: list[Encoded | RowRefused]) -> bool:
    """Whether both documents have the same tokens up to their first trained one."""
    prompts = [item.input_ids[: item.trained.argmax()].tolist() for item in results if isinstance(item, Encoded)]
    return len(prompts) == 2 and prompts[0] == prompts[1]


def unstable_tokens() -> RowRefused:
    return RowRefused("unstable_tokens", "The tokenizer joins the end of a prompt with the start of its answer.")


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
