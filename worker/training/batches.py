"""Micro-batches from a plan, in an order that a number of consumed rows describes whole."""

from collections.abc import Iterator
from typing import Any, TypedDict

import numpy as np
import torch
from torch.utils.data import Dataset

from app.jobs.spec import Training
from worker.data.plan import IGNORED, Plan, Row


class Batch(TypedDict):
    """`sources` are the flat positions [trained] in input_ids of the tokens that predict `targets` [trained]; all int64."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    sources: torch.Tensor
    targets: torch.Tensor
    rows: int
    tokens: int


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on the device."""
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def count_rows(plan_rows: int, training: Training) -> int:
    """Rows that a run consumes: full windows for `max_steps`, else its epochs' rows, so that its last window may be short."""
    if training.max_steps is not None:
        return training.max_steps * training.batch_size * training.gradient_accumulation
    return max(1, int(plan_rows * (training.epochs or 1.0)))


class PlanRows(Dataset[Row]):
    """The plan as torch's data loader wants it."""

    def __init__(self, plan: Plan):
        self._plan = plan

    def __len__(self) -> int:
        return self._plan.rows

    def __getitem__(self, index: int) -> Row:
        return self._plan.row(index)


class RowOrder:
    """Lists of row indices, one a micro-batch: epoch after epoch without a break, `total_rows` in all.

    Windows of gradient accumulation run across the end of an epoch, so that no row is lost; only the last may be short.
    """

    def __init__(self, plan: Plan, batch_size: int, total_rows: int):
        self._plan, self._batch_size, self._total_rows = plan, batch_size, total_rows

    def __len__(self) -> int:
        return -(-self._total_rows // self._batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        stream, left = self._rows(), self._total_rows
        while left:
            size = min(self._batch_size, left)
            yield [next(stream) for _ in range(size)]
            left -= size

    def _rows(self) -> Iterator[int]:
        epoch = 0
        while True:
            yield from self._plan.epoch_order(epoch).tolist()
            epoch += 1


def collate(rows: list[Row]) -> Batch:
    """Rows side by side, no longer than they need: what follows the last predicting token teaches nothing.

    Padding goes on counting positions, as if it were more of the last document: being last it is seen by nobody, and the
    attention needs no mask for it.
    """
    predicted = [np.flatnonzero((row.labels != IGNORED) & (row.position_ids > 0)) for row in rows]
    width = max(1, max((int(targets[-1]) for targets in predicted if len(targets)), default=1))
    input_ids = np.zeros((len(rows), width), dtype=np.int64)
    position_ids = np.empty((len(rows), width), dtype=np.int64)
    for index, row in enumerate(rows):
        taken = min(width, len(row.input_ids))
        input_ids[index, :taken] = row.input_ids[:taken]
        position_ids[index, :taken] = row.position_ids[:taken]
        position_ids[index, taken:] = row.position_ids[taken - 1] + np.arange(1, width - taken + 1)
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(position_ids),
        sources=torch.from_numpy(np.concatenate([targets - 1 + index * width for index, targets in enumerate(predicted)])),
        targets=torch.from_numpy(
            np.concatenate([row.labels[targets] for row, targets in zip(rows, predicted, strict=True)]).astype(np.int64)
        ),
        rows=len(rows),
        tokens=sum(len(row.input_ids) for row in rows),
    )
