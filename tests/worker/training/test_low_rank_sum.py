"""What training in bf16 must not lose: a young adapter, which adds a thousandth to what its layers put out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import make_spec, save_base
from torch import Tensor

from app.jobs.spec import JobSpec, merged
from worker.training.device import open_device
from worker.training.model import attach_adapter, autocast, last_hidden, load_base

DEVICE = open_device(None)
IDS = torch.arange(1, 129).reshape(2, 64)
POSITIONS = torch.arange(64).repeat(2, 1)


def load(base: Path, precision: str, *, factor: float, **lora: Any) -> Any:
    """With an adapter whose every second factor is random, of this standard deviation."""
    more = {"training": {"precision": precision, "memory": "balanced"}, "lora": lora}
    spec = JobSpec.model_validate(merged(make_spec(optimizer="adamw").model_dump(), more))
    model = attach_adapter(load_base(base, spec, DEVICE), spec, "1").train()
    numbers = torch.Generator().manual_seed(3)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=factor, generator=numbers)
    return model


def hidden_of(model: Any, precision: str) -> Tensor:
    with autocast(precision, DEVICE):
        return last_hidden(model, IDS, POSITIONS).float()


def what_the_adapter_does(model: Any, precision: str) -> Tensor:
    with torch.no_grad():
        adapted = hidden_of(model, precision)
        with model.disable_adapter():
            return adapted - hidden_of(model, precision)


def gradients_of(model: Any, precision: str) -> dict[str, Tensor]:
    torch.manual_seed(5)  # of the dropout
    hidden = hidden_of(model, precision)
    (hidden * torch.linspace(-1, 1, hidden.shape[-1])).sum().backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("options", [{}, {"attention_bias": True}], ids=["plain", "with biases"])
def test_bf16_keeps_what_a_young_adapter_adds(tmp_path: Path, options: dict[str, Any]) -> None:
    base = save_base(tmp_path / "tiny", **options)
    exact, seen = (what_the_adapter_does(load(base, name, factor=0.0005), name) for name in ("fp32", "bf16"))
    assert float((seen * exact).sum() / exact.square().sum()) > 0.7  # 0.3 where the base's output is rounded first


@pytest.mark.parametrize("lora", [{"r": 8, "dropout": 0.3}, {"r": 3, "variant": "rslora"}, {"variant": "dora"}], ids=str)
def test_gradients_in_bf16_are_those_in_fp32(tmp_path: Path, lora: dict[str, Any]) -> None:
    base = save_base(tmp_path / "tiny", attention_bias=True)
    exact, seen = (gradients_of(load(base, name, factor=0.02, **lora), name) for name in ("fp32", "bf16"))
    assert exact.keys() == seen.keys()
    for name, gradient in exact.items():
        assert float((seen[name] - gradient).norm() / gradient.norm()) < 0.1, name
