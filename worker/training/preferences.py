"""The objective of `dpo`: the model prefers the chosen answers, and stays near the model that it was.

That model, the reference, is asked once, before the first step, for the log-probabilities of all answers that the run will see.
They go into every checkpoint, so that a step costs no more than it does for tokens and a run that goes on has the same ones.
"""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from worker.data.plan import Plan
from worker.data.progress import Pulse
from worker.training import Run
from worker.training.batches import RowOrder, count_rows, to_device
from worker.training.checkpoints import Checkpoint
from worker.training.model import evaluating, target_losses
from worker.training.preference_batches import PlanPairs, PreferenceBatch, collate, split_by_document
from worker.training.preference_loss import describe, judge
from worker.training.restoration import restoring

REFERENCE = "reference.safetensors"


class Preferences:
    """`reference` and `held_out` are the reference's log-probabilities of the plan's rows and of the held-out ones, fp32
    [rows, 2]; not a number for rows that the run will not see."""

    def __init__(self, run: Run, model: PeftModel, reference: Tensor, held_out: Tensor | None):
        self._run, self._model = run, model
        self._reference, self._held_out = reference, held_out
        self._beta = run.spec.preference.beta
        self._judged: list[Tensor] = []
        self.rows = PlanPairs(run.plan, reference)

    @classmethod
    def open(cls, run: Run, model: PeftModel, checkpoint: Checkpoint | None) -> "Preferences":
        """Asks the model as it is now, before its first step, for what the checkpoint does not have."""
        reference, held_out = load_reference(checkpoint, run) if checkpoint else (None, None)
        if reference is None:
            seen = min(run.plan.rows, count_rows(run.plan.rows, run.spec.training))
            reference = ask(run, model, run.plan, seen, "Asking the model for its preferences before training")
        if run.validation and held_out is None:
            held_out = ask(run, model, run.validation, run.validation.rows, "Asking for those among the held-out rows")
        return cls(run, model, reference, held_out)

    def collate(self, rows: list[Any]) -> PreferenceBatch:
        return collate(rows)

    def count(self, batch: PreferenceBatch) -> int:
        return batch["rows"]

    def summed_loss(self, batch: PreferenceBatch) -> Tensor:
        judged = judge(log_probs_of(self._model, batch), batch["reference"], self._beta)
        self._judged.append(judged.rewards.detach())
        return judged.losses.sum()

    def take_metrics(self) -> dict[str, float]:
        rewards, self._judged = torch.cat(self._judged), []
        return describe(rewards)

    def measure(self, *, adapter: bool) -> dict[str, float]:
        if self._run.validation is None:
            return {}
        assert self._held_out is not None
        now = self._held_out
        if adapter:
            now = ask(self._run, self._model, self._run.validation, len(now), "Measuring preferences of the held-out rows")
        losses, rewards = judge(now, self._held_out, self._beta)
        return {"eval_loss": losses.mean().item()} | {f"eval_{name}": value for name, value in describe(rewards).items()}

    def save(self, folder: Path) -> None:
        held_out = {} if self._held_out is None else {"held_out": self._held_out}
        metadata = {"held_out": self._run.held_out}
        save_file({"training": self._reference, **held_out}, folder / REFERENCE, metadata=metadata)


def log_probs_of(model: PeftModel, batch: PreferenceBatch) -> Tensor:
    """Of the answers, summed over their tokens, fp32 [pairs, 2]."""
    return -split_by_document(target_losses(model, batch), batch["lengths"])


def ask(run: Run, model: PeftModel, plan: Plan, seen: int, what: str) -> Tensor:
    """The model's log-probabilities of the first `seen` rows in the order of training, fp32 [rows, 2] on the CPU, the others
    not a number. In the micro-batches of the first epoch: where nothing has been learned, nothing differs."""
    training = run.spec.training
    found = torch.full((plan.rows, 2), torch.nan)
    rows = PlanPairs(plan, found)
    pulse, done = Pulse(run.report, what, seen), 0
    with evaluating(model, training.precision, run.device, adapter=True):
        for indices in RowOrder(plan, training.batch_size, seen):
            batch = to_device(collate([rows[index] for index in indices]), run.device.torch)
            found[indices] = log_probs_of(model, batch).cpu()
            done += len(indices)
            pulse.beat(done)
    return found


def load_reference(checkpoint: Checkpoint, run: Run) -> tuple[Tensor, Tensor | None]:
    """What `save` wrote; the held-out part only if it is of the same rows. Unfit if it is not of this run's."""
    with restoring("reference"), safe_open(checkpoint.path / REFERENCE, framework="pt") as file:
        training = file.get_tensor("training")
        if training.shape != (run.plan.rows, 2):
            raise ValueError("it is of other rows")
        same = run.validation is not None and file.metadata()["held_out"] == run.held_out
        return training, file.get_tensor("held_out") if same else None
