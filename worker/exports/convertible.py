"""Asks llama.cpp's converter about a base model before any GPU time is spent, instead of after the training.

An architecture that it does not know, and a tokenizer whose pre-tokenizer it does not know, would fail the conversion.
"""

import hashlib
import json
import os
import tempfile
from pathlib import Path

from app.jobs.spec import BUILT_IN_MODEL, JobSpec
from app.jobs.states import FailureCode
from worker.data.base_models import BaseModel
from worker.exports.converter import SCRIPT, run_converter
from worker.exports.gguf_header import read_header
from worker.stages import Inputs, Report, StageFailure


def require_convertible(model: BaseModel, spec: JobSpec, inputs: Inputs, report: Report) -> None:
    """StageFailure model_unsupported, with the exports that are possible as the patch.

    Asking costs seconds: the converter writes the vocabulary alone. So its answer is kept, by model, revision and converter.
    Where this host has no converter, the one that converts will tell.
    """
    script = inputs.converter_dir / SCRIPT
    if not (spec.exports_of("gguf") or spec.exports_of("lora_gguf")) or model.name == BUILT_IN_MODEL or not script.is_file():
        return
    verdict = verdict_file(model, inputs)
    if not verdict.exists():
        report("progress", message="Asking llama.cpp's converter whether it knows the model")
        try:
            architecture = ask_architecture(model, inputs, report)
        except StageFailure as failure:
            raise inconvertible(failure.message, spec) from failure
        verdict.parent.mkdir(parents=True, exist_ok=True)
        part = verdict.with_name(f"{verdict.name}.{os.getpid()}")  # another job may read it at any time
        part.write_text(architecture)
        part.replace(verdict)
    if spec.exports_of("lora_gguf"):
        require_compared(verdict.read_text(), spec)


def ask_architecture(model: BaseModel, inputs: Inputs, report: Report) -> str:
    """What llama.cpp calls it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.gguf"
        run_converter(["--vocab-only", str(model.path)], path, "the vocabulary", inputs, report)
        return read_header(path).text("general.architecture")


def require_compared(architecture: str, spec: JobSpec) -> None:
    """The adapter alone has no other route than our own pass."""
    from worker.exports.outlines import VERIFIED  # costs the import of torch

    if architecture not in VERIFIED:
        known = ", ".join(sorted(VERIFIED))
        others = [export.model_dump() for export in spec.exports if export.kind != "lora_gguf"]
        raise StageFailure(
            FailureCode.MODEL_UNSUPPORTED,
            f"The adapter alone cannot be a GGUF for the architecture {architecture}: that is known for {known}.",
            hint="Export the whole model as gguf, which llama.cpp's converter writes, or the adapter as it is.",
            param="exports",
            patch={"exports": others or [{"kind": "gguf"}]},
        )


def verdict_file(model: BaseModel, inputs: Inputs) -> Path:
    """It has the architecture, and is named by what it hangs on; pip gives every version of the converter a dist-info folder of
    its own."""
    versions = sorted(path.name for path in inputs.converter_dir.glob("*.dist-info"))
    digest = hashlib.sha256(json.dumps([model.name, model.revision, versions]).encode()).hexdigest()
    return inputs.cache_dir / "architectures" / digest[:32]


def inconvertible(message: str, spec: JobSpec) -> StageFailure:
    others = [export.model_dump() for export in spec.exports if export.kind not in ("gguf", "lora_gguf")]
    return StageFailure(
        FailureCode.MODEL_UNSUPPORTED,
        message,
        hint="Leave gguf out of exports, or use another base model. The stage's log has the converter's output.",
        param="exports",
        patch={"exports": others or [{"kind": "merged"}]},
    )
