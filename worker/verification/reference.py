"""The probabilities that a file must have: those of the merged model in transformers, with one layer's weights at a time."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from worker.verification.weights import Weights

Tell = Callable[[str], None]


def compute_logits(folder: Path, weights: Weights, documents: list[np.ndarray], tell: Tell) -> list[np.ndarray]:
    """float32 [n, vocabulary] for each document, int32 [n]: what the model says after each of its tokens.

    `folder` has the model's config.json. KeyError when the architecture has weights that the files name otherwise.
    """
    model = build(folder)
    names = stored_names(model, weights.names)
    units = list(units_of(model))
    for number, (prefix, unit) in enumerate(units, 1):
        lend(unit, prefix, names, weights, partial(tell, f"Computing part {number} of {len(units)} of the merged model"))
    return run(model, documents)


def build(folder: Path) -> PreTrainedModel:
    """The architecture in fp32, its parameters without memory; what it computes for itself, as rotary tables, is there."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    return model.eval()


def stored_names(model: PreTrainedModel, stored: set[str]) -> dict[str, str]:
    """Of each parameter, the name that it has in the files: its own, or that of the one that it is tied to."""
    tied: dict[str, str] = model._tied_weights_keys or {}  # type: ignore[assignment]
    names = {}
    for name, _ in model.named_parameters(remove_duplicate=False):
        found = name if name in stored else tied.get(name)
        if found not in stored:
            raise KeyError(name)
        names[name] = found
    return names


def units_of(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """What is loaded at once: the numbered layers, and whatever else has parameters of its own."""
    if prefix.rpartition(".")[2].isdecimal() or any(True for _ in module.parameters(recurse=False)):
        yield prefix, module
        return
    for name, child in module.named_children():
        yield from units_of(child, f"{prefix}.{name}" if prefix else name)


def lend(unit: nn.Module, prefix: str, names: dict[str, str], weights: Weights, tell: Callable[[], None]) -> None:
    """Gives the unit its weights when it is called, and takes them back after."""
    empty: list[tuple[nn.Module, str, Any]] = []

    def fill(module: nn.Module, *_: Any) -> None:
        tell()
        for path, part in unit.named_modules(prefix=prefix):
            for key, parameter in list(part.named_parameters(recurse=False)):
                empty.append((part, key, parameter))
                weight = weights.get(names[f"{path}.{key}" if path else key]).float()
                part._parameters[key] = nn.Parameter(weight, requires_grad=False)

    def drain(module: nn.Module, *_: Any) -> None:
        while empty:
            part, key, parameter = empty.pop()
            part._parameters[key] = parameter

    unit.register_forward_pre_hook(fill)
    unit.register_forward_hook(drain)


def run(model: nn.Module, documents: list[np.ndarray]) -> list[np.ndarray]:
    """One pass for all documents. They are filled up on the right, which a causal model does not see from the left."""
    ids = torch.zeros((len(documents), max(map(len, documents))), dtype=torch.int64)
    for row, document in enumerate(documents):
        ids[row, : len(document)] = torch.from_numpy(document.astype(np.int64))
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits
    return [logits[row, : len(document)].numpy() for row, document in enumerate(documents)]


def compute_whole(folder: Path, adapter: Path | None, documents: list[np.ndarray]) -> list[np.ndarray]:
    """The same with the whole model in memory, and peft to merge the adapter: for what is more than a sum of named weights."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True, trust_remote_code=False)
    if adapter is not None:
        from worker.exports import merged_by_peft  # costs the import of peft

        adapted = merged_by_peft.attach(model, adapter)
        merged_by_peft.untie(model)
        model = adapted.merge_and_unload(safe_merge=True)
    return run(model.float().eval(), documents)
