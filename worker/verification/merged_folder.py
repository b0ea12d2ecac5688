"""Whether the files of a merged model hold what they must."""

from collections.abc import Iterator
from pathlib import Path

import torch

from worker.verification.weights import Weights

LEEWAY = {torch.float16: 2**-10, torch.bfloat16: 2**-7, torch.float32: 2**-20}
"""How much of itself a rounded number may differ by: one place."""


def check_merged(folder: Path, expected: Weights | None) -> Iterator[str]:
    """What is wrong, in sentences. `expected` are the weights that it must have, None if peft has merged it: then they must be
    finite."""
    found = Weights(folder)
    if expected and expected.names != found.names:
        name = min(expected.names ^ found.names)
        yield f"{name} is not in the merged files" if name in expected.names else f"{name} is more than the model has"
        return
    for name in sorted(found.names):
        weight = found.get(name)
        if not all(extreme.isfinite() for extreme in torch.aminmax(weight)):
            yield f"{name} is not finite"
        elif expected and not is_close(weight, expected.get(name)):
            yield f"{name} is not the base model's weight with the adapter added once"
        else:
            continue
        return


def is_close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    return torch.equal(found, expected) or torch.allclose(found, expected, rtol=LEEWAY[found.dtype], atol=0.0)
