"""The lock of a checkpoint: what the run was set up with, and what it means for another run that differs in it.

A lock is flat JSON, the name of an item and its value. RULES gives an item's rule by its name or by the part before the dot.
"""

import hashlib
import json
import platform
from collections.abc import Iterator
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from app.jobs.spec import JobSpec
from worker.data.base_models import BaseModel
from worker.data.plan import Plan
from worker.data.tokenizer import read_json
from worker.exports.shards import read_entries
from worker.training.device import Device

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "numpy")
READ_WHOLE = (".json", ".jinja", ".model", ".txt")
SAMPLE_BYTES = 256


class Rule(StrEnum):
    REFUSED = "refused"
    """The checkpoint is passed over: it belongs to another run."""
    DEGRADED = "degraded"
    """It is used, with a warning that names the difference: losses may differ in their last bits."""
    IGNORED = "ignored"
    """It is used: the item changes nothing, or another item says it better. It is there to be read."""


RULES: dict[str, Rule] = {
    "data": Rule.REFUSED,
    "base_model": Rule.REFUSED,
    "chat_template": Rule.REFUSED,
    "method": Rule.REFUSED,
    "preference": Rule.REFUSED,
    "quantization": Rule.REFUSED,
    "lora": Rule.REFUSED,
    "from_job": Rule.REFUSED,
    "rows_per_step": Rule.REFUSED,
    "training": Rule.REFUSED,
    "early_stopping": Rule.REFUSED,
    "training.batch_size": Rule.DEGRADED,
    "training.memory": Rule.DEGRADED,
    "training.gradient_accumulation": Rule.IGNORED,
    "training.oom_ladder": Rule.IGNORED,
    "attention": Rule.DEGRADED,
    "device": Rule.DEGRADED,
    "python": Rule.DEGRADED,
    "packages": Rule.DEGRADED,
    "held_out": Rule.IGNORED,
    "spec": Rule.IGNORED,
}


class Change(NamedTuple):
    """An item that differs. A value is None where one side does not have the item."""

    item: str
    old: Any
    new: Any


def make_lock(
    spec: JobSpec, plan: Plan, base: BaseModel, device: Device, *, held_out: str, attention: str, adapter: Path | None = None
) -> dict[str, Any]:
    """The lock of a run whose `spec` is settled. `held_out` names the rows and prompts that are measured beside training,
    `adapter` is the folder of the one that the run starts from."""
    training = spec.training
    return {
        "data": plan.facts["sha256"],
        "base_model.name": spec.base_model,
        "base_model.revision": base.revision,
        "base_model.sha256": hash_base(base.path),
        "chat_template": hash_template(base.path),
        "method": spec.method,
        "preference.beta": spec.preference.beta if spec.method == "dpo" else None,
        "quantization": spec.quantization,
        **{f"lora.{key}": value for key, value in spec.lora.model_dump(mode="json").items()},
        "from_job": adapter and hash_file(adapter / "adapter_model.safetensors"),
        "rows_per_step": training.batch_size * training.gradient_accumulation,
        **{f"training.{key}": value for key, value in training.model_dump(mode="json").items()},
        "early_stopping": describe_stopping(spec),
        "attention": attention,
        **{f"device.{key}": value for key, value in device.describe().items()},
        "python": platform.python_version(),
        **{f"packages.{package}": version(package) for package in PACKAGES},
        "held_out": held_out,
        "spec": hash_json(spec.model_dump(mode="json")),
    }


def describe_stopping(spec: JobSpec) -> dict[str, Any] | None:
    """Where a run ends hangs on when the held-out rows are measured, and on which."""
    if spec.early_stopping is None:
        return None
    return spec.early_stopping.model_dump() | {"every_steps": spec.evaluation.every_steps}


def rule_of(item: str) -> Rule:
    """What no rule names was locked by another version of this program: refused."""
    return RULES.get(item) or RULES.get(item.partition(".")[0], Rule.REFUSED)


def compare(old: dict[str, Any], new: dict[str, Any], rule: Rule) -> list[Change]:
    """The items under `rule` in which two locks differ, by name."""
    items = sorted(item for item in old.keys() | new.keys() if rule_of(item) is rule)
    return [Change(item, old.get(item), new.get(item)) for item in items if old.get(item) != new.get(item)]


def hash_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_base(folder: Path) -> str:
    """Covers a model folder's configuration and tokenizer whole, and of each safetensors file the names, types, shapes and
    places of its tensors and the first 256 bytes of each: other weights tell themselves by those, without gigabytes to read."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors" or path.suffix in READ_WHOLE:
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            for piece in samples(path) if path.suffix == ".safetensors" else [path.read_bytes()]:
                digest.update(piece)
    return digest.hexdigest()


def samples(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        for entry in read_entries(path):
            yield repr(entry).encode()
            file.seek(entry.start)
            yield file.read(min(SAMPLE_BYTES, entry.bytes))


def hash_template(folder: Path) -> str | None:
    """Of the chat template as transformers finds it, None when the tokenizer has none."""
    own = folder / "chat_template.jinja"
    template = (
        own.read_text(encoding="utf-8") if own.exists() else read_json(folder / "tokenizer_config.json").get("chat_template")
    )
    return None if template is None else hash_json(template)
