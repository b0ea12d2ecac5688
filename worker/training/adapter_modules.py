"""Which modules of a base model an adapter may change, and whether a spec names such ones. Needs no weights."""

from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from app.jobs.spec import JobSpec
from app.jobs.states import FailureCode
from worker.stages import StageFailure


def empty_model(folder: Path) -> PreTrainedModel:
    """The architecture of a model folder, without its weights."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def check_modules(model: PreTrainedModel, spec: JobSpec) -> None:
    """StageFailure invalid_spec for a name that fits no module of the kind that can be changed that way."""
    head = model.get_output_embeddings()
    linear, whole = [], []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not head:
            linear.append(name)
        elif any(True for _ in module.parameters(recurse=False)):
            whole.append(name)
    targets, saved = spec.lora.target_modules, spec.lora.modules_to_save
    if isinstance(targets, list):
        among = f"the linear layers inside {spec.base_model}"
        require(targets, linear, "lora.target_modules", among, {"lora": {"target_modules": "all-linear"}})
    fitting = [name for name in saved if any(matches(module, name) for module in whole)]
    among = f"the embeddings, norms and output head of {spec.base_model}"
    require(saved, whole, "lora.modules_to_save", among, {"lora": {"modules_to_save": fitting}})


def require(names: list[str], modules: list[str], param: str, among: str, patch: dict) -> None:
    for name in names:
        if not any(matches(module, name) for module in modules):
            known = sorted({module.rpartition(".")[2] for module in modules})
            message = f"{param}: {name!r} is none of {among}: {', '.join(known)}."
            hint = f"Name some of these, or whole paths such as {modules[0]}."
            raise StageFailure(FailureCode.INVALID_SPEC, message, hint=hint, param=param, patch=patch)


def matches(module: str, name: str) -> bool:
    """As peft compares: the whole path, or its end after a dot."""
    return module == name or module.endswith(f".{name}")


def unties(model: PreTrainedModel, spec: JobSpec) -> bool:
    """Whether the spec trains one of two embeddings that share their weights: each then has weights of its own."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    shared = embeddings.weight is head.weight  # type: ignore[union-attr, operator]
    names = [name for name, module in model.named_modules() if module in (embeddings, head)]
    return shared and any(matches(module, name) for module in names for name in spec.lora.modules_to_save)
