"""Tells whether what a checkpoint holds fits a run, before the first step shows it by a traceback or by wrong numbers."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerState

from worker.training import Run
from worker.training.batches import count_rows
from worker.training.checkpoints import Checkpoint, Unfit
from worker.training.failures import is_out_of_memory
from worker.training.progress import Counters

COUNTERS = "counters.json"
FILES = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", COUNTERS)
"""Trainer goes on without those that it does not find, only `scaler.pt` may be missing: fp16 alone has one."""
MOMENTS = ("exp_avg", "exp_avg_sq", "state1", "state2")
"""The state of a weight that has its shape, in torch's AdamW and in bitsandbytes'."""


@contextmanager
def restoring(part: str) -> Iterator[None]:
    """Unfit, with the `part` of the checkpoint, for whatever goes wrong inside but a lack of memory."""
    try:
        yield
    except Exception as problem:
        if is_out_of_memory(problem):
            raise
        raise Unfit(f"its {part} cannot be loaded ({type(problem).__name__}: {problem})") from problem


def read_counters(checkpoint: Checkpoint, run: Run) -> Counters:
    """Unfit unless the checkpoint has all files, and they agree on how far it was."""
    with restoring("state"):
        wanted = [*FILES, "scaler.pt"] if run.spec.training.precision == "fp16" and run.device.is_cuda else FILES
        missing = [name for name in wanted if not (checkpoint.path / name).is_file()]
        if missing:
            raise FileNotFoundError(", ".join(missing))
        counters = Counters(**json.loads((checkpoint.path / COUNTERS).read_text()))
        state = TrainerState.load_from_json(str(checkpoint.path / "trainer_state.json"))
        rows = min(counters.step * run.lock["rows_per_step"], count_rows(run.plan.rows, run.spec.training))
        if (counters.step, state.global_step, counters.rows) != (checkpoint.step, checkpoint.step, rows):
            raise ValueError(f"it is of step {state.global_step} and row {counters.rows}, not of row {rows}")
    return counters


def check_optimizer(optimizer: Any) -> None:
    """ValueError unless every weight has moments of its own shape: loading compares no more than their number."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            moments = [value for name, value in optimizer.state[weight].items() if name in MOMENTS]
            if len(moments) != 2 or any(moment.shape != weight.shape for moment in moments):
                raise ValueError("its moments are those of other weights")


def check_schedule(schedule: Any, step: int) -> None:
    """ValueError when the schedule is at another step. fp16 skips steps that overflow, and the schedule waits for them."""
    if not 0 <= schedule.last_epoch <= step:
        raise ValueError(f"it is at step {schedule.last_epoch}, not {step}")
