"""Documents on disk in the order in which they come, until they are packed: the memory holds only their lengths."""

from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np


class Document(NamedTuple):
    """One conversation, or one piece of a long one: n token ids, and which of them are trained."""

    input_ids: Sequence[int] | np.ndarray
    trained: Sequence[bool] | np.ndarray


class Spool:
    """Takes documents, counts them and, with a folder, keeps them. `lengths` are tokens by document."""

    def __init__(self, folder: Path | None = None):
        self.lengths = array("q")
        self.trained_tokens = 0
        """Without the first token of each document: nothing before it predicts it."""
        self._folder = folder
        self._files: list[BinaryIO] = []
        if folder is not None:
            folder.mkdir(parents=True)
            self._files = [(folder / name).open("wb") for name in ("input_ids", "trained")]

    @classmethod
    def of(cls, folder: Path, documents: Iterable[Document]) -> "Spool":
        spool = cls(folder)
        spool.extend(documents)
        return spool

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    def extend(self, documents: Iterable[Document]) -> None:
        for document in documents:
            input_ids, trained = np.asarray(document.input_ids, dtype=np.int32), np.asarray(document.trained, dtype=np.bool_)
            self.lengths.append(len(input_ids))
            self.trained_tokens += int(np.count_nonzero(trained[1:]))
            for file, values in zip(self._files, (input_ids, trained), strict=False):
                file.write(values.data)

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """All documents after one another, mapped: int32 [tokens] and bool [tokens]."""
        assert self._folder is not None
        for file in self._files:
            file.flush()
        if not self.lengths:
            return np.empty(0, dtype=np.int32), np.empty(0, dtype=np.bool_)
        ids, trained = (
            np.memmap(self._folder / name, dtype=kind, mode="r")
            for name, kind in (("input_ids", np.int32), ("trained", np.bool_))
        )
        return ids, trained

    def remove(self) -> None:
        for file in self._files:
            file.close()
            Path(file.name).unlink()
        if self._folder is not None:
            self._folder.rmdir()
