"""What a run minimises, by its method: the form of its micro-batches, their loss, and what held-out rows tell of it.

One for tokens (`sft`, `cpt`) and one for preferences (`dpo`). The loop around them, checkpoints and reports are the same.
"""

from pathlib import Path
from typing import Any, Protocol

from peft import PeftModel
from torch import Tensor
from torch.utils.data import Dataset

from worker.training import Run, evaluation
from worker.training.batches import Batch, PlanRows, collate
from worker.training.checkpoints import Checkpoint
from worker.training.model import target_losses
from worker.training.preferences import Preferences


class Objective(Protocol):
    @property
    def rows(self) -> Dataset:
        """The plan's rows as `collate` takes them."""

    def collate(self, rows: list[Any]) -> Any:
        """A micro-batch, which has what a Batch has."""

    def count(self, batch: Any) -> int:
        """How many of a micro-batch's things the loss of a step is the mean of."""

    def summed_loss(self, batch: Any) -> Tensor:
        """Over these things: an fp32 scalar to take the gradient of."""

    def take_metrics(self) -> dict[str, float]:
        """What else there is to tell of the micro-batches since the last call, by its name in the metric points."""

    def measure(self, *, adapter: bool) -> dict[str, float]:
        """Of the held-out rows, `eval_loss` and others; nothing without such rows. Without the adapter: before training."""

    def save(self, folder: Path) -> None:
        """Adds to a checkpoint what this objective needs to go on."""


def open_objective(run: Run, model: PeftModel, checkpoint: Checkpoint | None) -> Objective:
    """Call while the adapter is as it was before the first step. Unfit if the checkpoint lacks what is needed to go on."""
    return Preferences.open(run, model, checkpoint) if run.spec.method == "dpo" else Tokens(run, model)


class Tokens:
    """The mean cross-entropy of the trained tokens."""

    def __init__(self, run: Run, model: PeftModel):
        self._run, self._model = run, model
        self.rows = PlanRows(run.plan)

    def collate(self, rows: list[Any]) -> Batch:
        return collate(rows)

    def count(self, batch: Batch) -> int:
        return len(batch["targets"])

    def summed_loss(self, batch: Batch) -> Tensor:
        return target_losses(self._model, batch).sum()

    def take_metrics(self) -> dict[str, float]:
        return {}

    def measure(self, *, adapter: bool) -> dict[str, float]:
        run, training = self._run, self._run.spec.training
        if run.validation is None:
            return {}
        options: dict[str, Any] = {"batch_size": training.batch_size, "precision": training.precision, "device": run.device}
        return evaluation.measure(self._model, run.validation, run.stop_token_ids, **options, adapter=adapter)

    def save(self, folder: Path) -> None:
        pass
