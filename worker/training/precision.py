"""The number format that a device computes in. Pure: what it decides for a GPU is tested without one."""

from app.jobs.states import FailureCode
from worker.stages import StageFailure

BF16_CAPABILITY = (8, 0)
"""Ampere. Below it bfloat16 is emulated or missing: a T4 (7.5) and a V100 (7.0) compute in fp16."""


def choose(requested: str, capability: tuple[int, int] | None) -> str:
    """`fp32`, `fp16` or `bf16` for a CUDA compute capability, None for a CPU.

    A CPU computes in fp32 only: there is no gradient scaler for fp16, and bf16 is slower than fp32 on most of them.
    StageFailure invalid_spec when the device cannot do what was asked for.
    """
    natural = "fp32" if capability is None else "bf16" if capability >= BF16_CAPABILITY else "fp16"
    if requested in ("auto", natural, "fp32"):
        return natural if requested == "auto" else requested
    if requested == "fp16" and capability is not None:
        return requested
    device = "a CPU" if capability is None else f"a GPU of compute capability {capability[0]}.{capability[1]}"
    raise StageFailure(
        FailureCode.INVALID_SPEC,
        f"training.precision is {requested}, which {device} cannot train in. Ask for {natural} or auto.",
        param="training.precision",
        patch={"training": {"precision": natural}},
    )
