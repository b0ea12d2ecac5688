"""How far a run is: counters that survive a restart, and what is reported of each step."""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from worker.training import Run
from worker.training.device import MemoryMeter
from worker.training.failures import lost_loss
from worker.training.precision import BF16_CAPABILITY

RECENT_STEPS = 20
SKIPS_ALLOWED = 20
"""fp16 halves its loss scale of 65536 with each skipped step; after so many in a row it is below 1."""


@dataclass
class Counters:
    """Kept in each checkpoint. `rows` is the data's cursor: the next row is number `rows` of the endless row order."""

    step: int = 0
    rows: int = 0
    tokens_seen: int = 0
    trained_tokens: int = 0
    loss_sum: float = 0.0
    last_loss: float = math.nan
    last_metrics: dict[str, float] = field(default_factory=dict)
    """What the objective told of the last step."""
    train_seconds: float = 0.0
    held_out: str | None = None
    """The Run's, once its base model has been measured: the next two."""
    measured_base: dict[str, float] = field(default_factory=dict)
    answers_before: list[str] | None = None
    considered_step: int | None = None
    """The last step whose adapter was compared with the best one, with early stopping: the next four."""
    best_step: int | None = None
    best_loss: float | None = None
    stale: int = 0
    """Measurements in a row that were no better."""
    stopped_early: bool = False

    @property
    def train_loss(self) -> float:
        return self.loss_sum / max(1, self.step)


class Progress:
    """Counts steps and reports them."""

    def __init__(self, counters: Counters, run: Run):
        self.counters = counters
        self.meter = MemoryMeter(run.device)
        self.last_metrics: dict[str, Any] = {}
        self._run, self._report = run, run.report
        self._recent: deque[float] = deque(maxlen=RECENT_STEPS)
        self._skipped = 0
        self._began = self._since = time.monotonic()

    def start(self) -> None:
        """Right before the first step."""
        self.meter.start()
        self.report_memory()
        self._since = time.monotonic()

    def window_started(self, *, rows: int, tokens: int, trained_tokens: int) -> None:
        """The micro-batches of the next step are there."""
        self._began = time.monotonic()
        self._window_tokens = tokens
        self.counters.rows += rows
        self.counters.tokens_seen += tokens
        self.counters.trained_tokens += trained_tokens

    def step_done(
        self,
        *,
        loss: float,
        learning_rate: float,
        grad_norm: float,
        metrics: dict[str, float],
        evaluate: Callable[[], dict[str, float]] | None,
    ) -> dict[str, float]:
        """`metrics` is what the objective adds; `evaluate` measures the held-out rows, when this step is one to do so at: what
        it finds is returned. StageFailure when a number is none."""
        counters = self.counters
        counters.step += 1
        self._check(loss, grad_norm)
        seconds = time.monotonic() - self._began
        self._recent.append(seconds)
        counters.loss_sum += loss
        counters.last_loss, counters.last_metrics = loss, metrics
        speed = round(self._window_tokens / seconds, 1)
        measured = evaluate() if evaluate else {}
        self.count_seconds()
        self.last_metrics = {
            "step": counters.step,
            "time": time.time(),
            "loss": loss,
            "eval_loss": None,
            "learning_rate": learning_rate,
            "grad_norm": grad_norm if math.isfinite(grad_norm) else None,
            "tokens_per_second": speed,
            "reserved_bytes": self.meter.reserved(),
            **metrics,
            **measured,
        }
        self._report("metrics", points=[self.last_metrics])
        self._report(
            "progress",
            step=counters.step,
            total_steps=self._run.total_steps,
            percent=round(100 * counters.step / self._run.total_steps, 2),
            eta_seconds=round((self._run.total_steps - counters.step) * sum(self._recent) / len(self._recent), 1),
            epoch=round(counters.rows / self._run.plan.rows, 4),
            tokens_seen=counters.tokens_seen,
            trained_tokens=counters.trained_tokens,
            tokens_per_second=speed,
            message=None,
        )
        if len(self._recent) == 1:
            self.report_memory()
        return measured

    def count_seconds(self) -> None:
        """Adds the time since the last call: steps, and what is between them."""
        now = time.monotonic()
        self.counters.train_seconds += now - self._since
        self._since = now

    def report_memory(self) -> None:
        self._report("memory", **self.meter.report())

    def _check(self, loss: float, grad_norm: float) -> None:
        """fp16 skips a step whose gradient overflows and goes on with a smaller loss scale; elsewhere there is no way back."""
        self._skipped = 0 if math.isfinite(grad_norm) else self._skipped + 1
        allowed = SKIPS_ALLOWED if self._run.spec.training.precision == "fp16" else 0
        if not math.isfinite(loss) or self._skipped > allowed:
            capability = self._run.device.capability
            raise lost_loss(self._run.spec, self.counters.step, capability is not None and capability >= BF16_CAPABILITY)
