"""Training engines, by name. An engine is a module with one function, `train(run: Run) -> Trained`.

A Run is settled: nothing in its spec's `training` is `auto` any more. The engine loads the base, attaches the adapter, trains
it over the plan, reports as it goes, writes checkpoints and leaves the adapter in `run.out / "adapter"`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.jobs.spec import JobSpec
from worker.stages import Report

if TYPE_CHECKING:
    from worker.data.plan import Plan
    from worker.training.checkpoints import Checkpoint
    from worker.training.device import Device

ENGINES: dict[str, str] = {"trl": "worker.training.trl_engine"}
ATTENTION = "sdpa"
"""How transformers computes attention."""


@dataclass(frozen=True, kw_only=True)
class Run:
    spec: JobSpec
    device: "Device"
    base: Path
    """The base model's folder."""
    base_revision: str
    adapter: Path | None
    """The folder of the adapter to start from; a new one when None."""
    plan: "Plan"
    validation: "Plan | None"
    samples: list[dict[str, Any]]
    """Held-out prompts to answer before and after: {"prompt_ids", "prompt", "question", "reference", "stop_token_ids"}."""
    stop_token_ids: list[int]
    """Those that end an answer."""
    total_steps: int
    warmup_steps: int
    out: Path
    held_out: str
    """Names `validation` and `samples`: what was measured on others is measured again."""
    lock: dict[str, Any]
    """Goes into each checkpoint; see worker.training.lock."""
    checkpoints: "Iterator[Checkpoint]"
    """Those that the run may go on from, the newest first. The engine takes the first that can be loaded."""
    report: Report


@dataclass(frozen=True, kw_only=True)
class Trained:
    """`train_seconds`, `train_loss` and the token counts cover every attempt of the run, not only the last."""

    steps: int
    train_seconds: float
    train_loss: float
    final_loss: float
    last_metrics: dict[str, float]
    """Of the last step, beside its loss: what the objective has to tell."""
    measured_base: dict[str, float]
    measured: dict[str, float]
    """Of the held-out rows, before and after training: `eval_loss` and others, nothing without such rows."""
    samples: dict[str, Any] | None
    trainable_parameters: int
    resumed_from_step: int | None
    best_step: int | None
    """With early stopping: the step whose adapter is the run's."""
    stopped_early: bool
