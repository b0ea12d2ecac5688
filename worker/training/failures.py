"""What a user can do when training runs out of memory or its loss is lost."""

import torch

from app.jobs.ladder import next_rung
from app.jobs.spec import JobSpec
from app.jobs.states import FailureCode
from worker.stages import StageFailure

MARKS = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "bad_alloc")


def is_out_of_memory(problem: BaseException) -> bool:
    """Also what libraries under torch raise as a plain RuntimeError."""
    if isinstance(problem, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(problem, RuntimeError) and any(mark in str(problem) for mark in MARKS)


def out_of_memory(spec: JobSpec, device_name: str, *, training: bool) -> StageFailure:
    """`patch` is the cheapest change that keeps the result: a smaller micro-batch, then recomputing, then shorter rows."""
    param, patch, advice = smaller(spec, training)
    place = "training" if training else "loading the base model"
    message = f"{device_name} ran out of memory while {place}. {advice}"
    return StageFailure(FailureCode.OUT_OF_MEMORY, message, hint=advice, param=param, patch=patch)


def smaller(spec: JobSpec, training: bool) -> tuple[str, dict | None, str]:
    settings = spec.training
    if not training:
        if spec.quantization == "none":
            return "quantization", {"quantization": "nf4"}, "Quantise the base model: quantization nf4."
        return "base_model", None, "Choose a smaller base model, or a device with more memory."
    rung = next_rung(settings.model_dump())
    if rung:
        words = " and ".join(f"training.{name} to {value}" for name, value in rung.items())
        return f"training.{next(iter(rung))}", {"training": rung}, f"Set {words}."
    length = max(16, settings.max_seq_length // 2)
    patch = {"training": {"max_seq_length": length}}
    return "training.max_seq_length", patch, f"Lower training.max_seq_length to {length}."


def lost_loss(spec: JobSpec, step: int, bf16_is_possible: bool) -> StageFailure:
    """The loss or the gradient is no number any more."""
    settings = spec.training
    param: str
    patch: dict
    if settings.precision == "fp16" and bf16_is_possible:
        param, patch, advice = "training.precision", {"training": {"precision": "bf16"}}, "Set training.precision to bf16."
    else:
        rate = settings.learning_rate / 10
        param, patch = "training.learning_rate", {"training": {"learning_rate": rate}}
        advice = f"Lower training.learning_rate, for example to {rate:g}."
    message = f"The loss stopped being a number at step {step}. {advice}"
    return StageFailure(FailureCode.NAN_LOSS, message, hint=advice, param=param, patch=patch)
