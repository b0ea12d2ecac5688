"""What the contract has and this version does not do yet: refused by name, never accepted and ignored."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from app.errors import Detail
from app.jobs.spec import Dataset, JobSpec, Preference

Test = Callable[[JobSpec], bool]

LATER: list[tuple[str, Any, Test]] = [
    # the field, what it must be instead, whether the spec asks for more
    ("training.memory", "auto", lambda spec: spec.training.memory == "low"),
    ("preemptible", False, lambda spec: spec.preemptible),
    ("gpus", 1, lambda spec: spec.gpus != 1),
]


def check_available(spec: JobSpec) -> list[Detail]:
    details = [not_available(param, instead) for param, instead, asks in LATER if asks(spec)]
    if spec.quantization == "int8" and spec.lora.variant == "dora":  # peft loses the scales of 8-bit layers on a CPU
        message = "quantization: DoRA on 8-bit weights is not available in this version; hold them as nf4, or none."
        details.append(Detail("quantization", message, "not_available", {"quantization": "nf4"}))
    return details


def check_adapter_gguf(spec: JobSpec) -> list[Detail]:
    """llama.cpp knows the plain form of an adapter only."""
    reason = "lora.variant dora" if spec.lora.variant == "dora" else "lora.modules_to_save" if spec.lora.modules_to_save else ""
    if not reason or not spec.exports_of("lora_gguf"):
        return []
    message = f"exports: llama.cpp cannot load an adapter with {reason} by itself; export the whole model as gguf."
    others = [export.model_dump() for export in spec.exports if export.kind != "lora_gguf"]
    return [Detail("exports", message, patch={"exports": others or [{"kind": "gguf"}]})]


def not_available(param: str, instead: Any) -> Detail:
    patch = instead
    for name in reversed(param.split(".")):
        patch = {name: patch}
    return Detail(param, f"{param}: this is not available in this version; leave it out.", "not_available", patch)


def check_validation(dataset: Dataset) -> list[Detail]:
    param = "dataset.validation_file"
    if dataset.validation_file is None:
        return []
    if dataset.validation_file == dataset.file:
        message = f"{param}: this is the file that is trained on. Upload other rows, or set dataset.validation_fraction."
        return [Detail(param, message, patch={"dataset": {"validation_file": None}})]
    if dataset.validation_fraction:
        message = f"{param}: rows are held out by a file or by dataset.validation_fraction, not both."
        return [Detail(param, message, patch={"dataset": {"validation_fraction": 0.0}})]
    return []


DEFAULTS = {"preference": Preference().model_dump()}
ANSWERS_ONLY = {"training": {"assistant_only_loss": True}}


def check_method(spec: JobSpec) -> list[Detail]:
    """What the method leaves no choice of, or has no use for."""
    details = []
    prefers = spec.method == "dpo"
    if spec.dataset.format != "auto":
        details += check_form(spec, spec.dataset.format, "dataset.format")
    if spec.preference != Preference() and not prefers:
        message = f"preference: it is for the method dpo, and the method is {spec.method}."
        details.append(Detail("preference", message, patch=DEFAULTS))
    if prefers and not spec.training.assistant_only_loss:
        message = "training.assistant_only_loss: dpo compares answers; their prompts cannot be part of it."
        details.append(Detail("training.assistant_only_loss", message, patch=ANSWERS_ONLY))
    return details


def check_form(spec: JobSpec, form: str, param: str) -> list[Detail]:
    """Whether the method can learn from rows of this form; the patch chooses one that can."""
    prefers = spec.method == "dpo"
    if (form == "preference") == prefers:
        return []
    wanted = "preferences, chosen and rejected answers" if prefers else "rows without a rejected answer"
    message = f"{param}: the rows are {form}, but the method {spec.method} learns from {wanted}."
    patch: dict[str, Any] = {"method": "sft" if prefers else "dpo"}
    if prefers and spec.preference != Preference():
        patch |= DEFAULTS
    if not prefers and not spec.training.assistant_only_loss:
        patch |= ANSWERS_ONLY
    return [Detail(param, message, patch=patch)]


def check_evaluation(spec: JobSpec) -> list[Detail]:
    """What looks at held-out rows needs some."""
    every, stopping = spec.evaluation.every_steps, spec.early_stopping
    if spec.from_checkpoint:
        return []  # nothing is trained
    details = []
    if stopping and every is None:
        message = "early_stopping: it looks at the held-out loss at intervals. Set evaluation.every_steps."
        details.append(Detail("early_stopping", message, patch={"evaluation": {"every_steps": 50}}))
    if (stopping or every) and not spec.dataset.validation_file and not spec.dataset.validation_fraction:
        param = "early_stopping" if stopping else "evaluation.every_steps"
        message = f"{param}: there are no held-out rows. Set dataset.validation_fraction or dataset.validation_file."
        details.append(Detail(param, message, patch={"dataset": {"validation_fraction": 0.05}}))
    return details


def check_publications(spec: JobSpec) -> list[Detail]:
    """Each repository once, and of each only what the job makes."""
    details = []
    made = {export.kind for export in spec.exports}
    seen: set[str] = set()
    for place, publication in enumerate(spec.publish):
        param = f"publish[{place}]"
        if publication.repo.lower() in seen:
            message = f"{param}.repo: {publication.repo} is named twice. Put all of its artifacts into one entry."
            details.append(Detail(f"{param}.repo", message))
        seen.add(publication.repo.lower())
        if lacking := [kind for kind in publication.artifacts if kind not in made]:
            message = f"{param}.artifacts: {', '.join(lacking)} is not among the exports, which are {', '.join(sorted(made))}."
            exports = [export.model_dump() for export in spec.exports] + [{"kind": kind} for kind in dict.fromkeys(lacking)]
            details.append(Detail(f"{param}.artifacts", message, patch={"exports": exports}))
    return details


def check_combinations(spec: JobSpec) -> list[Detail]:
    """Fields that are right by themselves and wrong together."""
    seen: Counter[str] = Counter()
    details = [
        *check_validation(spec.dataset),
        *check_method(spec),
        *check_evaluation(spec),
        *check_adapter_gguf(spec),
        *check_publications(spec),
    ]
    for place, export in enumerate(spec.exports):
        name = " ".join(export.model_dump().values())
        seen[name] += 1
        if seen[name] > 1:
            details.append(Detail(f"exports[{place}]", f"exports[{place}]: the export {name} is asked for twice."))
    return details
