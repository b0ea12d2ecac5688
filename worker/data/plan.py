"""The packed data plan: every token that training will see, in files that are mapped, never loaded whole.

    plan.json               what `write_plan` returns
    input_ids.npy           int32 [tokens]
    trained.npy             bool  [tokens]           whether the loss counts this token
    document_offsets.npy    int64 [documents + 1]    in tokens: document d is tokens offsets[d]..offsets[d + 1]
    row_offsets.npy         int64 [rows + 1]         in documents: row r is documents offsets[r]..offsets[r + 1]

A plan of preferences (`pairs`) has two documents a row, the chosen answer's and the rejected one's: they begin with the same
tokens, those of the prompt, and their masks are on the answers.

The order of an epoch follows from the seed alone, so the number of rows consumed is all that a resume needs.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from worker.data.packing import pack
from worker.data.spool import Document, Spool

__all__ = ["Document", "Plan", "Row", "write_plan"]

VERSION = 1
ARRAYS = ("input_ids", "trained", "document_offsets", "row_offsets")
IGNORED = -100
"""The label that the loss leaves out."""


class Row(NamedTuple):
    """One training row, all int32 [n]. `labels` are the ids where trained and IGNORED elsewhere, not shifted;
    `position_ids` start again at 0 with each document."""

    input_ids: np.ndarray
    labels: np.ndarray
    position_ids: np.ndarray


def write_plan(
    folder: Path,
    documents: Spool,
    *,
    max_seq_length: int,
    packing: bool,
    seed: int,
    pairs: bool = False,
    report: Any = lambda kind, **data: None,
) -> dict[str, Any]:
    """Packs the documents into rows of at most `max_seq_length` tokens and writes the plan to `folder`, which is created.

    Without `packing` each document is a row of its own, in the given order. With `pairs` each two documents are a row, the
    chosen one and the rejected one: a preference, at most twice as long. The first token of a document is never trained:
    nothing before it predicts it. `report` is told how far it is. Returns {version, rows, documents, tokens, trained_tokens,
    max_seq_length, packing, pairs, seed, sha256}. The same documents and options give the same bytes. ValueError for an empty
    or too long document.
    """
    lengths = np.frombuffer(documents.lengths, dtype=np.int64) if len(documents) else np.empty(0, dtype=np.int64)
    if len(lengths) and (lengths.min() < 1 or lengths.max() > max_seq_length):
        raise ValueError(f"documents must have 1 to {max_seq_length} tokens")
    report("progress", message=f"Packing {len(documents)} documents")
    rows = share_rows(lengths, max_seq_length, packing=packing, pairs=pairs)
    report("progress", message=f"Writing {len(rows)} rows")
    order = [index for row in rows for index in row]
    document_offsets = offsets_of(lengths[order])
    folder.mkdir(parents=True)
    write_tokens(folder, documents, lengths, order, document_offsets)
    np.save(folder / "document_offsets.npy", document_offsets, allow_pickle=False)
    np.save(folder / "row_offsets.npy", offsets_of([len(row) for row in rows]), allow_pickle=False)
    report("progress", message=f"Hashing {len(rows)} rows")
    digest = hash_arrays(folder)
    facts = {
        "version": VERSION,
        "rows": len(rows),
        "documents": len(documents),
        "tokens": int(document_offsets[-1]),
        "trained_tokens": documents.trained_tokens,
        "max_seq_length": max_seq_length,
        "packing": packing and not pairs,
        "pairs": pairs,
        "seed": seed,
        "sha256": digest,
    }
    (folder / "plan.json").write_text(json.dumps(facts, indent=2) + "\n")
    return facts


def plan_bytes(documents: Spool) -> int:
    """The most that the plan of these documents takes on disk: five bytes a token, and two offsets a document."""
    return 5 * documents.tokens + 16 * len(documents)


def share_rows(lengths: np.ndarray, max_seq_length: int, *, packing: bool, pairs: bool) -> list[list[int]]:
    """The documents' indices by row."""
    if pairs:
        return [[index, index + 1] for index in range(0, len(lengths), 2)]
    return pack(lengths, max_seq_length) if packing else [[index] for index in range(len(lengths))]


def write_tokens(folder: Path, documents: Spool, lengths: np.ndarray, order: list[int], offsets: np.ndarray) -> None:
    """Copies the documents from where they came to where they belong, both mapped."""
    sources = offsets_of(lengths)[:-1][order].tolist()
    places = list(zip(sources, offsets[:-1].tolist(), offsets[1:].tolist(), strict=True))
    for name, values in zip(ARRAYS[:2], documents.read(), strict=True):
        if not len(values):
            np.save(folder / f"{name}.npy", values, allow_pickle=False)
            continue
        target = np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=values.dtype, shape=values.shape)
        for source, start, end in places:
            target[start:end] = values[source : source + end - start]
        if name == "trained":
            target[offsets[:-1]] = False
        target.flush()


def hash_arrays(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in ARRAYS:
        digest.update(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False).data)
    return digest.hexdigest()


def offsets_of(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """[n] lengths to [n + 1] offsets, the first of them 0."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])


@dataclass(frozen=True)
class Plan:
    """A plan on disk, opened for reading. `facts` is plan.json."""

    facts: dict[str, Any]
    input_ids: np.ndarray
    trained: np.ndarray
    document_offsets: np.ndarray
    row_offsets: np.ndarray

    @classmethod
    def open(cls, folder: Path) -> "Plan":
        facts = json.loads((folder / "plan.json").read_text())
        if facts["version"] != VERSION:
            raise ValueError(f"plan version {facts['version']} is not {VERSION}")
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ARRAYS}
        return cls(facts, **arrays)

    @property
    def rows(self) -> int:
        return len(self.row_offsets) - 1

    def row(self, index: int) -> Row:
        """Row `index` of the file, 0 ≤ index < rows, as fresh arrays. IndexError outside."""
        if not 0 <= index < self.rows:
            raise IndexError(f"row {index} of {self.rows}")
        offsets = self.document_offsets[self.row_offsets[index] : self.row_offsets[index + 1] + 1]
        start, end = int(offsets[0]), int(offsets[-1])
        input_ids = np.array(self.input_ids[start:end])
        labels = np.where(self.trained[start:end], input_ids, np.int32(IGNORED))
        starts = np.repeat(offsets[:-1] - start, np.diff(offsets))
        return Row(input_ids, labels, (np.arange(end - start) - starts).astype(np.int32))

    def epoch_order(self, epoch: int) -> np.ndarray:
        """The rows of an epoch (from 0), shuffled: int64 [rows], the same on every host for the same seed and epoch.

        RandomState, because numpy promises never to change its streams; Generator's may change between versions.
        """
        bits = np.random.MT19937(np.random.SeedSequence([self.facts["seed"], epoch]))
        return np.random.RandomState(bits).permutation(self.rows).astype(np.int64)
