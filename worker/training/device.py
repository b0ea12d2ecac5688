"""The device that trains, and how much of its memory is taken."""

import os
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Device:
    """`name` is what users read; `capability` is CUDA's compute capability, None for a CPU; `total_bytes` is its memory."""

    torch: torch.device
    name: str
    capability: tuple[int, int] | None
    total_bytes: int

    @property
    def is_cuda(self) -> bool:
        return self.torch.type == "cuda"

    def describe(self) -> dict[str, Any]:
        """What the numbers of a run depend on, as JSON: a CPU's vector instructions and how many threads share a sum."""
        if self.capability is not None:
            return {"name": self.name, "capability": "{}.{}".format(*self.capability), "threads": None}
        return {"name": self.name, "capability": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}


def open_device(limit_bytes: int | None) -> Device:
    """The first visible GPU, capped at `limit_bytes`, or the CPU. Call before anything touches CUDA: libraries that saw a
    second GPU would train on both."""
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    if not torch.cuda.is_available():
        return Device(torch.device("cpu"), "cpu", None, os.sysconf("SC_PHYS_PAGES") * resource.getpagesize())
    facts = torch.cuda.get_device_properties(0)
    if limit_bytes is not None:
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit_bytes / facts.total_memory), 0)
    return Device(torch.device("cuda", 0), facts.name, (facts.major, facts.minor), facts.total_memory)


def resident_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class MemoryMeter:
    """Start and peak of the device's reserved memory, or of this process's resident memory on a CPU.

    The allocator keeps a GPU's peak; on a CPU `sample` is called where memory is highest, after a forward pass.
    """

    def __init__(self, device: Device):
        self.device = device
        self._start = self._peak = 0

    def start(self) -> None:
        """Call right before the first step, with the adapters attached."""
        if self.device.is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self._start = self._peak = self.reserved()

    def reserved(self) -> int:
        return torch.cuda.memory_reserved() if self.device.is_cuda else resident_bytes()

    def sample(self) -> None:
        self._peak = max(self._peak, torch.cuda.max_memory_reserved() if self.device.is_cuda else resident_bytes())

    def report(self) -> dict[str, Any]:
        """The contract's `memory` object."""
        self.sample()
        training = self._peak - self._start
        return {
            "device": self.device.name,
            "device_total_bytes": self.device.total_bytes,
            "start_reserved_bytes": self._start,
            "peak_reserved_bytes": self._peak,
            "training_reserved_bytes": training,
            "peak_percent": round(100 * self._peak / self.device.total_bytes, 3),
            "training_percent": round(100 * training / self.device.total_bytes, 3),
        }
