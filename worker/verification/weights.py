"""The weights that a merged model must have, worked out from the base model and the adapter, one at a time.

This is not worker.exports on purpose: no fault of the merge can be on both sides of a comparison with these.
"""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

PREFIX = "base_model.model."


class Weights:
    """The weights of a model folder by name, with a plain LoRA adapter added to them if one is given.

    The delta and the sum are in the type of the merged model: the base's own 16-bit type, bfloat16 for a base in fp32.
    """

    def __init__(self, folder: Path, adapter: Path | None = None):
        self._shards: dict[str, Any] = {}
        sizes: Counter[str] = Counter()
        for path in sorted(folder.glob("*.safetensors")):
            shard = safe_open(path, "pt")
            for name in shard.keys():  # noqa: SIM118 — it is no dict
                self._shards[name] = shard
                view = shard.get_slice(name)
                sizes[view.get_dtype()] += math.prod(view.get_shape())
        main = max(sizes, key=lambda kind: sizes[kind])
        self._dtype = torch.float16 if main == "F16" else torch.bfloat16
        self._rounds = main == "F32" and adapter is not None
        self._adapter = safe_open(adapter / "adapter_model.safetensors", "pt") if adapter else None
        self._changed = set(self._adapter.keys()) if self._adapter else set()
        self._scale = scale_of(adapter) if adapter else 0.0

    @property
    def names(self) -> set[str]:
        return set(self._shards)

    @property
    def count(self) -> int:
        return sum(math.prod(shard.get_slice(name).get_shape()) for name, shard in self._shards.items())

    def get(self, name: str) -> torch.Tensor:
        """KeyError for a weight that is not there."""
        weight: torch.Tensor = self._shards[name].get_tensor(name)
        module = PREFIX + name.removesuffix(".weight")
        if self._adapter is None or f"{module}.lora_A.weight" not in self._changed:
            return weight.to(self._dtype) if self._rounds and weight.dtype == torch.float32 else weight
        down, up = (self._adapter.get_tensor(f"{module}.lora_{half}.weight").float() for half in "AB")
        return weight.to(self._dtype) + (self._scale * (up @ down)).to(self._dtype)


def scale_of(adapter: Path) -> float:
    """alpha/r, for rsLoRA alpha/√r."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    return config["lora_alpha"] / (math.sqrt(config["r"]) if config["use_rslora"] else config["r"])
