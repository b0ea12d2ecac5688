"""The number format that a run computes in. Pure: what it decides for a GPU is tested without one.

Whatever it is, adapters, their gradients and the optimizer are fp32, and fp16 has a gradient scaler (decision 0021).
"""

from typing import NamedTuple

from app.jobs.states import FailureCode
from worker.stages import StageFailure

BF16_CAPABILITY = (8, 0)
"""Ampere. Below it bfloat16 is emulated or missing: a T4 (7.5) and a V100 (7.0) compute in fp16."""

OVERFLOWING = ("gemma3", "gemma4", "qwen3_moe", "qwen3_5_moe", "glm4_moe")
"""The architectures, by what their `model_type` begins with, whose activations or gradients leave fp16's range, 65,504: Gemma 3
reaches 800,000. They were trained in bf16, which has the range of fp32."""


class Decision(NamedTuple):
    precision: str
    """`fp32`, `fp16` or `bf16`."""
    warning: str | None
    """Why it is not what the device is best at."""


def choose(requested: str, capability: tuple[int, int] | None, model_type: str) -> Decision:
    """For a CUDA compute capability, None for a CPU, and a base model's `model_type`.

    A CPU computes in fp32 only: there is no gradient scaler for fp16, and bf16 is slower than fp32 on most of them. On a GPU
    without bf16, `auto` is fp32 for an architecture that overflows fp16: it takes twice the memory and several times as long.
    StageFailure invalid_spec when the device or the model cannot do what was asked for.
    """
    overflows = model_type.startswith(OVERFLOWING)
    natural = "fp32" if capability is None else "bf16" if capability >= BF16_CAPABILITY else "fp32" if overflows else "fp16"
    if requested == "fp16" and overflows:
        raise refusal(requested, f"the architecture {model_type}, whose numbers are too large for it,", "auto")
    if requested == "auto" and natural == "fp32" and capability is not None:
        reason = f"{name_of(capability)} has no bf16, and the numbers of {model_type} are too large for fp16"
        return Decision(natural, f"Training is in fp32, which is slower: {reason}.")
    if requested in ("auto", natural, "fp32"):
        return Decision(natural if requested == "auto" else requested, None)
    if requested == "fp16" and capability is not None:
        return Decision(requested, None)
    raise refusal(requested, name_of(capability), natural)


def name_of(capability: tuple[int, int] | None) -> str:
    return "a CPU" if capability is None else f"a GPU of compute capability {capability[0]}.{capability[1]}"


def refuse_overflow(requested: str, model_type: str) -> None:
    """StageFailure invalid_spec for what no device can do: known before there is one."""
    if requested == "fp16":
        choose(requested, BF16_CAPABILITY, model_type)


def refusal(requested: str, who: str, instead: str) -> StageFailure:
    alternatives = instead if instead == "auto" else f"{instead} or auto"
    return StageFailure(
        FailureCode.INVALID_SPEC,
        f"training.precision is {requested}, which {who} cannot train in. Ask for {alternatives}.",
        param="training.precision",
        patch={"training": {"precision": instead}},
    )
