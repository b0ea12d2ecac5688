"""What happens to samples that have more tokens than a row: split at a turn, cut, or dropped. Never without a count."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from worker.data.formats import Sample
from worker.data.formats.turns import Conversation, Preference, Turn
from worker.data.masks import Encoded, Encoder
from worker.data.rows import RowRefused
from worker.data.spool import Document


class Fitted(NamedTuple):
    """A sample's documents, none for one that was dropped, and what happened to it: parted at a turn, robbed of its end, or
    written as several documents by its template; and how many tokens are lost. `pieces` are what was there before the cut."""

    documents: list[Document]
    pieces: list[Encoded]
    split: bool = False
    cut: bool = False
    unrolled: bool = False
    tokens_lost: int = 0


def fit(samples: Sequence[Sample], encoder: Encoder, *, max_seq_length: int, policy: str) -> list[Fitted | RowRefused]:
    """The documents of each sample, none longer than `max_seq_length`.

    `policy` `split` parts a conversation between an answer and the next question, each part with the system turn, and a text,
    or a conversation that is learned whole, where a row is full; a single exchange or a preference that is too long is cut.
    `cut` keeps the start, `drop` nothing.
    """
    return [
        encoded if isinstance(encoded, RowRefused) else fit_one(sample, encoded, encoder, max_seq_length, policy)
        for sample, encoded in zip(samples, encoder.encode(samples), strict=True)
    ]


def fit_one(sample: Sample, encoded: list[Encoded], encoder: Encoder, max_seq_length: int, policy: str) -> Fitted:
    unrolled = len(encoded) > 1 and not isinstance(sample, Preference)
    if fits(encoded, max_seq_length):
        return Fitted([Document(*document[:2]) for document in encoded], encoded, unrolled=unrolled)
    if policy == "drop":
        return Fitted([], encoded, tokens_lost=count_tokens(encoded))
    parts = split(sample, encoded, encoder, max_seq_length) if policy == "split" else None
    pieces = parts or encoded
    documents = cut(pieces, max_seq_length)
    if isinstance(sample, Preference) and len(documents) < len(pieces):
        documents = []
    lost = count_tokens(pieces) - count_tokens(documents)
    if not documents:
        return Fitted([], pieces, tokens_lost=lost)
    return Fitted(documents, pieces, split=parts is not None, cut=lost > 0, unrolled=unrolled, tokens_lost=lost)


def fits(encoded: list[Encoded], max_seq_length: int) -> bool:
    return all(len(document.input_ids) <= max_seq_length for document in encoded)


def count_tokens(documents: Sequence[Encoded | Document]) -> int:
    return sum(len(document.input_ids) for document in documents)


def split(sample: Sample, encoded: list[Encoded], encoder: Encoder, max_seq_length: int) -> list[Encoded] | None:
    """The parts; None where there is no place to part it."""
    if isinstance(sample, Preference):
        return None
    if isinstance(sample, str) or encoder.whole:
        [whole] = encoded
        return split_tokens(whole, max_seq_length, has_bos=encoder.bos is not None)
    return split_turns(sample, encoded, encoder, max_seq_length)


def split_tokens(whole: Encoded, room: int, *, has_bos: bool) -> list[Encoded]:
    """Runs of tokens, each after the BOS or, where the model has none, after the token before: all but the first are predicted
    by what comes before them, and none twice."""
    ids, trained = whole.input_ids, whole.trained
    parts = []
    for start in range(1, len(ids), room - 1):
        before, part = 0 if has_bos else start - 1, slice(start, start + room - 1)
        first = slice(before, before + 1)
        parts.append(Encoded(np.append(ids[first], ids[part]), np.append(trained[first], trained[part])))
    return parts


def split_turns(conversation: Conversation, encoded: list[Encoded], encoder: Encoder, room: int) -> list[Encoded] | None:
    """The conversation as runs of whole exchanges, each as long as fits, in order and after the system turn.

    None where that cannot be told or the template does not take a part. `ends` say about where a run is full; each is encoded
    by itself, since what stands before it is then gone.
    """
    exchanges = exchanges_of(conversation)
    ends = exchange_ends(conversation, encoded, encoder)
    if len(exchanges) == 1 or ends is None:
        return None
    pieces: list[Encoded] = []
    start = 0
    while start < len(exchanges):
        stop = start + 1
        while stop < len(exchanges) and ends[stop + 1] - ends[start] <= room:
            stop += 1
        while True:
            part = part_of(conversation, exchanges[start:stop])
            [documents] = encoder.encode([part]) if part else [[]]
            if isinstance(documents, RowRefused):
                return None
            if fits(documents, room) or stop == start + 1:
                break
            part_ends = exchange_ends(part, documents, encoder) if part else None
            reached = sum(end <= room for end in part_ends[1:]) if part_ends else 0
            stop = start + max(1, min(reached, stop - start - 1))
        pieces += documents
        start = stop
    return pieces


def exchanges_of(conversation: Conversation) -> list[list[int]]:
    """The turns' numbers in runs that each begin with a question, without the system turn."""
    exchanges: list[list[int]] = []
    before = "assistant"
    for index, turn in enumerate(conversation.turns):
        if turn["role"] == "system":
            continue
        if turn["role"] == "user" and before == "assistant":
            exchanges.append([])
        exchanges[-1].append(index)
        before = turn["role"]
    return exchanges


def exchange_ends(conversation: Conversation, encoded: list[Encoded], encoder: Encoder) -> list[int] | None:
    """0 and, for each exchange, how many tokens there are up to its end; None if the answers' ends cannot be told."""
    known = [document.answer_ends for document in encoded]
    ends = encoder.find_answer_ends(conversation) if None in known else [end for part in known for end in part or []]
    if ends is None or len(ends) != sum(turn["role"] == "assistant" for turn in conversation.turns):
        return None
    result, answers = [0], 0
    for exchange in exchanges_of(conversation):
        answers += sum(conversation.turns[index]["role"] == "assistant" for index in exchange)
        result.append(ends[answers - 1])
    return result


def part_of(conversation: Conversation, exchanges: list[list[int]]) -> Conversation | None:
    """These exchanges after the system turn; None if nothing in them is to be learned."""
    kept = [index for exchange in exchanges for index in exchange]
    if conversation.turns[0]["role"] == "system":
        kept = [0, *kept]
    untrained = frozenset(new for new, old in enumerate(kept) if old in conversation.untrained)
    turns: list[Turn] = [conversation.turns[index] for index in kept]
    learned = any(turn["role"] == "assistant" and index not in untrained for index, turn in enumerate(turns))
    return conversation._replace(turns=turns, untrained=untrained) if learned else None


def cut(pieces: list[Encoded], max_seq_length: int) -> list[Document]:
    """The pieces as documents, without what is past a row's end; those without a trained token left are lost."""
    return [
        Document(piece.input_ids[:max_seq_length], piece.trained[:max_seq_length])
        for piece in pieces
        if piece.trained[1:max_seq_length].any()
    ]
