"""Micro-batches of preferences: the two documents of each pair, packed into few rows, each seeing only itself."""

from itertools import pairwise
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from worker.data.packing import pack
from worker.data.plan import IGNORED, Plan, Row


class PreferenceBatch(TypedDict):
    """A Batch whose targets come by document: the chosen answer of the first pair, its rejected one, those of the next pair.
    `lengths` are the targets of each. `reference` is fp32 [pairs, 2], see worker.training.preferences."""

    input_ids: Tensor
    position_ids: Tensor
    sources: Tensor
    targets: Tensor
    lengths: list[int]
    reference: Tensor
    rows: int
    tokens: int


class Pair(NamedTuple):
    row: Row
    reference: Tensor
    """fp32 [2]."""


class PlanPairs(Dataset[Pair]):
    """The plan's rows, each with its part of `reference`, fp32 [rows, 2]."""

    def __init__(self, plan: Plan, reference: Tensor):
        self._plan, self._reference = plan, reference

    def __len__(self) -> int:
        return self._plan.rows

    def __getitem__(self, index: int) -> Pair:
        return Pair(self._plan.row(index), self._reference[index])


class Answered(NamedTuple):
    """A document without what follows its last trained token, int64 [n], and where its trained tokens are."""

    input_ids: np.ndarray
    trained: np.ndarray


def collate(pairs: list[Pair]) -> PreferenceBatch:
    """Rows as wide as the longest document need be. Padding goes on counting positions, as in worker.training.batches."""
    documents = [document for pair in pairs for document in documents_of(pair.row)]
    lengths = [len(document.input_ids) - 1 for document in documents]  # the last token is predicted, and predicts nothing
    width = max(lengths)
    shared = pack(lengths, width)
    input_ids = np.zeros((len(shared), width), dtype=np.int64)
    position_ids = np.empty((len(shared), width), dtype=np.int64)
    places = [0] * len(documents)
    for number, members in enumerate(shared):
        start = 0
        for index in members:
            end = start + lengths[index]
            input_ids[number, start:end] = documents[index].input_ids[:-1]
            position_ids[number, start:] = np.arange(width - start)
            places[index], start = number * width + start, end
    sources = [place + document.trained - 1 for place, document in zip(places, documents, strict=True)]
    return PreferenceBatch(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(position_ids),
        sources=torch.from_numpy(np.concatenate(sources)),
        targets=torch.from_numpy(np.concatenate([document.input_ids[document.trained] for document in documents])),
        lengths=[len(document.trained) for document in documents],
        reference=torch.stack([pair.reference for pair in pairs]),
        rows=len(pairs),
        tokens=sum(len(pair.row.input_ids) for pair in pairs),
    )


def documents_of(row: Row) -> list[Answered]:
    """The chosen and the rejected one. Both have trained tokens: `prepare` leaves no other pair."""
    starts = [*np.flatnonzero(row.position_ids == 0).tolist(), len(row.input_ids)]
    documents = []
    for start, end in pairwise(starts):
        trained = np.flatnonzero(row.labels[start:end] != IGNORED)
        documents.append(Answered(row.input_ids[start : start + trained[-1] + 1].astype(np.int64), trained))
    return documents


def split_by_document(losses: Any, lengths: list[int]) -> Tensor:
    """Sums of `losses` [targets], fp32 [pairs, 2]. Not by index_add: on a GPU it adds in another order each time."""
    return torch.stack([part.sum() for part in losses.split(lengths)]).view(-1, 2)
