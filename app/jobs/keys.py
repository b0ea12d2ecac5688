"""What a stage's outputs depend on, as a hash: on a retry, only a stage with an equal key is kept.

A key covers the stage's code version, the fields of the spec that it reads, and the key of the stage before. What is listed is
what a stage does not read: a field that nobody thought of makes a stage run that need not have, and never a wrong result.
"""

import hashlib
import json
from typing import Any

from app.jobs.spec import plan
from app.jobs.states import Stage

CODE_VERSIONS = dict.fromkeys(Stage, 1) | {Stage.CONVERT: 2}
"""Raise a stage's number when it makes something else out of the same inputs."""

NEVER_READ = {
    "hub_token", "purpose", "labels", "priority", "preemptible", "max_runtime_seconds", "webhook", "publish", "checkpoints",
}  # fmt: skip
OUTPUTS = {"name", "exports"}
PREPARE_READS = {"max_seq_length", "packing", "assistant_only_loss", "seed"}


def stage_keys(spec: dict[str, Any]) -> dict[Stage, str]:
    """The key of each stage that the spec needs, in order; the spec is a JobSpec in its JSON form."""
    keys: dict[Stage, str] = {}
    before = ""
    for stage in plan(spec):
        content = json.dumps([stage, CODE_VERSIONS[stage], before, part_of(spec, stage)], sort_keys=True)
        before = keys[stage] = hashlib.sha256(content.encode()).hexdigest()
    return keys


def part_of(spec: dict[str, Any], stage: Stage) -> dict[str, Any]:
    if stage is Stage.MERGE:
        return {"merged": exports_of(spec, "merged")}
    if stage is Stage.CONVERT:
        return {"gguf": exports_of(spec, "gguf"), "lora_gguf": exports_of(spec, "lora_gguf"), "name": spec["name"]}
    if stage is Stage.VERIFY:
        return {}  # all that it looks at is in the keys of the stages before
    if stage is Stage.PUBLISH:
        entries = [{name: value for name, value in entry.items() if name != "token"} for entry in spec["publish"]]
        return {"publish": entries, "name": spec["name"]}
    read = {name: value for name, value in spec.items() if name not in NEVER_READ | OUTPUTS}
    training = {name: value for name, value in spec["training"].items() if name != "oom_ladder"}
    if stage is Stage.TRAIN:
        return read | {"training": training, "adapter": exports_of(spec, "adapter")}
    exported = {"adapter": exports_of(spec, "adapter")} if spec["from_checkpoint"] else {}
    for name in ("quantization", "lora", "preference", "early_stopping", "gpus"):
        del read[name]
    return read | exported | {"training": {name: value for name, value in training.items() if name in PREPARE_READS}}


def exports_of(spec: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [export for export in spec["exports"] if export["kind"] == kind]
