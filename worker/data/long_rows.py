"""What happens to samples that have more tokens than a row: split at a turn, cut, or dropped. Never without a count."""

from collections.abc import Sequence
from dataclasses import dataclass

from worker.data.formats import Sample
from worker.data.formats.turns import Turn
from worker.data.masks import Encoded, Encoder
from worker.data.plan import Document
from worker.data.rows import RowRefused


@dataclass
class Losses:
    """How many samples became several documents, lost their end, or were left out whole."""

    split: int = 0
    cut: int = 0
    dropped: int = 0


def fit(
    samples: Sequence[Sample], encoder: Encoder, *, max_seq_length: int, policy: str, losses: Losses
) -> list[list[Document] | RowRefused]:
    """The documents of each sample, none longer than `max_seq_length`; an empty list for one that was dropped.

    `policy` `split` parts a conversation between an answer and the next question, each part with the system turn, and a text
    where a row is full; a single exchange that is too long is cut. `cut` keeps the start, `drop` nothing.
    """
    results: list[list[Document] | RowRefused] = []
    for sample, encoded in zip(samples, encoder.encode(samples), strict=True):
        if isinstance(encoded, RowRefused):
            results.append(encoded)
        elif len(encoded.input_ids) <= max_seq_length:
            results.append([Document(*encoded[:2])])
        elif policy == "drop":
            losses.dropped += 1
            results.append([])
        else:
            pieces = split(sample, encoded, encoder, max_seq_length) if policy == "split" else [encoded]
            results.append(cut(pieces, max_seq_length, losses))
    return results


def split(sample: Sample, encoded: Encoded, encoder: Encoder, max_seq_length: int) -> list[Encoded]:
    if isinstance(sample, str):
        starts = range(0, len(encoded.input_ids), max_seq_length)
        slices = [slice(start, start + max_seq_length) for start in starts]
        return [Encoded(encoded.input_ids[piece], encoded.trained[piece]) for piece in slices]
    parts = split_turns(sample, encoded, encoder, max_seq_length)
    if len(parts) == 1:
        return [encoded]
    pieces = [piece for piece in encoder.encode(parts) if isinstance(piece, Encoded)]
    return pieces if len(pieces) == len(parts) else [encoded]


def split_turns(turns: list[Turn], encoded: Encoded, encoder: Encoder, max_seq_length: int) -> list[list[Turn]]:
    """The conversation as the fewest runs of whole exchanges that fit, in order, each after the system turn."""
    system = turns[:1] if turns[0]["role"] == "system" else []
    exchanges = exchanges_of(turns[len(system) :])
    if len(exchanges) == 1:
        return [turns]
    ends = encoded.answer_ends or encoder.find_answer_ends(turns)
    without_first = encoder.count_tokens(system + [turn for exchange in exchanges[1:] for turn in exchange])
    if ends is None or without_first is None:
        return [turns]
    # What stands before the first exchange: the system turn, or what the template writes in its place.
    head = ends[0] - (len(encoded.input_ids) - without_first)
    parts: list[list[Turn]] = []
    used = max_seq_length
    for exchange, length in zip(exchanges, (end - start for start, end in zip([head, *ends], ends, strict=False)), strict=True):
        if used + length > max_seq_length:
            parts.append(list(system))
            used = head
        parts[-1].extend(exchange)
        used += length
    return parts


def exchanges_of(turns: list[Turn]) -> list[list[Turn]]:
    """Runs of turns that each end with an answer."""
    exchanges: list[list[Turn]] = [[]]
    for turn in turns:
        if exchanges[-1] and exchanges[-1][-1]["role"] == "assistant":
            exchanges.append([])
        exchanges[-1].append(turn)
    return exchanges


def cut(pieces: list[Encoded], max_seq_length: int, losses: Losses) -> list[Document]:
    """The pieces as documents, without what is past a row's end; those without a trained token left are lost."""
    documents = [
        Document(piece.input_ids[:max_seq_length], piece.trained[:max_seq_length])
        for piece in pieces
        if piece.trained[1:max_seq_length].any()
    ]
    whole = sum(len(piece.input_ids) for piece in pieces) == sum(len(document.input_ids) for document in documents)
    losses.dropped += not documents
    losses.cut += bool(documents) and not whole
    losses.split += len(documents) > 1
    return documents
