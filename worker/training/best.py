"""Early stopping: the adapter that did best on the held-out rows, and when to hope no longer for a better one."""

from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from worker.training import Run
from worker.training.checkpoints import Checkpoint
from worker.training.model import adapter_tensors, set_adapter
from worker.training.progress import Counters
from worker.training.restoration import restoring

FILE = "best.safetensors"


class Best:
    """A copy of the adapter at its lowest held-out loss, in host memory and in every checkpoint."""

    def __init__(self, run: Run, model: PeftModel, counters: Counters, checkpoint: Checkpoint | None):
        """Unfit if the checkpoint lacks the copy."""
        assert run.spec.early_stopping is not None
        self._run, self._model, self._counters = run, model, counters
        self._asked = run.spec.early_stopping
        self._tensors: dict[str, Tensor] = {}
        if checkpoint and counters.best_step is not None:
            with restoring("best adapter"):
                self._tensors = load_file(checkpoint.path / FILE)

    def consider(self, loss: float) -> None:
        """Notes the held-out loss of the adapter as it is now. A loss that is no number is none of a better one."""
        counters = self._counters
        counters.considered_step = counters.step
        lowest = counters.best_loss
        counters.stale = 0 if lowest is None or loss < lowest - self._asked.min_delta else counters.stale + 1
        if lowest is None or loss < lowest:
            counters.best_loss, counters.best_step = loss, counters.step
            self._tensors = adapter_tensors(self._model)

    @property
    def gives_up(self) -> bool:
        return self._counters.stale >= self._asked.patience

    def restore(self) -> None:
        """Makes the model's adapter the best one, and reports which it is."""
        counters = self._counters
        set_adapter(self._model, self._tensors)
        kept = f"The adapter of step {counters.best_step} is kept: its held-out loss of {counters.best_loss:.4f} is the lowest."
        ended = f"Training stopped at step {counters.step} of {self._run.total_steps}. "
        code, message = ("stopped_early", ended + kept) if counters.stopped_early else ("best_adapter", kept)
        facts: dict[str, Any] = {"step": counters.step, "best_step": counters.best_step, "best_loss": counters.best_loss}
        self._run.report("warning", code=code, message=message, **facts)

    def save(self, folder: Path) -> None:
        if self._tensors:
            save_file(self._tensors, folder / FILE)
