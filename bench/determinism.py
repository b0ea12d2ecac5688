"""Which kernel of a training step does not give the same bits twice?

usage: determinism.py MODEL_DIR [MAX_SEQ_LENGTH]

Runs the same micro-batch forward and backward twice through the train stage's own model and loss: as it is in training, then
with one kernel for attention at a time. Where `math` gives equal bits, all else is deterministic. Prints JSON: whether losses
and gradients are equal to the last bit, the weights whose gradients are not, what a pass costs and reserves.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from app.jobs.spec import JobSpec
from worker.data.plan import Document, Plan, write_plan
from worker.data.spool import Spool
from worker.stages.train import settle
from worker.training.batches import collate
from worker.training.device import open_device
from worker.training.model import attach_adapter, autocast, load_base, target_losses

VOCABULARY = 1000
NAMED = 8


def main(folder: Path, length: int) -> None:
    device = open_device(None)
    spec = JobSpec.model_validate({"base_model": "probe", "dataset": {"file": "none"}, "lora": {"dropout": 0.05}})
    spec, _ = settle(spec, device, folder)
    model = attach_adapter(load_base(folder, spec, device), spec, "probe")
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)  # zeros would hide what the backward pass does to lora_A
    batch = {key: value.to(device.torch) for key, value in make_batch(length).items() if isinstance(value, torch.Tensor)}
    results = {"as it is": measure(model, spec, device, batch)}
    if device.is_cuda:
        for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            with sdpa_kernel(backend):
                results[backend.name] = measure(model, spec, device, batch)
            results[backend.name]["peak_reserved_bytes"] = torch.cuda.max_memory_reserved()
    print(json.dumps({"device": device.name, "torch": torch.__version__, "attention": results}))


def measure(model: Any, spec: JobSpec, device: Any, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Two passes against each other, after one that warms up, and the seconds of the second."""
    run_pass(model, spec, device, batch)
    first = run_pass(model, spec, device, batch)
    began = time.monotonic()
    second = run_pass(model, spec, device, batch)
    seconds = time.monotonic() - began
    differing = [name for name in first if not torch.equal(first[name], second[name])]
    largest = max((float((first[name] - second[name]).abs().max()) for name in differing), default=0.0)
    facts = {"equal": not differing, "differing": len(differing), "of": len(first), "first": differing[:NAMED]}
    return facts | {"largest": largest, "seconds": round(seconds, 4)}


def make_batch(length: int) -> Any:
    """Two packed rows of random tokens, all trained."""
    numbers = np.random.default_rng(0)
    documents = [Document(numbers.integers(0, VOCABULARY, length // 4), [True] * (length // 4)) for _ in range(8)]
    with tempfile.TemporaryDirectory() as name:
        spool = Spool.of(Path(name) / "spool", documents)
        write_plan(Path(name) / "plan", spool, max_seq_length=length, packing=True, seed=1)
        plan = Plan.open(Path(name) / "plan")
        return collate([plan.row(0), plan.row(1)])


def run_pass(model: Any, spec: JobSpec, device: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The loss and the gradient of every trained weight, by name."""
    torch.manual_seed(0)
    model.zero_grad()
    with autocast(spec.training.precision, device):
        loss = target_losses(model, batch).sum()
    loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    if device.is_cuda:
        torch.cuda.synchronize()
    return {"loss": loss.detach().clone()} | gradients


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 2048)
