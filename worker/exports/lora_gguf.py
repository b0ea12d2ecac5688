"""The adapter alone as a GGUF, for a llama.cpp that has the base model already (`--lora`).

The tensors' names, and the order of the rows in q and k, are those of the model's own file. llama.cpp multiplies by alpha/r, so
an rsLoRA's alpha is told as alpha·√r.
"""

import math
import struct
from pathlib import Path

import numpy as np

from app.jobs.spec import LoraGgufExport
from app.jobs.states import FailureCode
from worker.exports import ggml
from worker.exports.converter import failed
from worker.exports.gguf_header import Header, Slot, pack_text, placed
from worker.exports.gguf_writing import Matrix, Output, Target, as_kind
from worker.exports.merged import Adapter, Merger, read_shards, reason_for_peft
from worker.exports.mixtures import QUANTIZATION_VERSION
from worker.exports.outlines import Outline
from worker.exports.sources import Source
from worker.stages import OutputFile

KINDS = {"f32": (ggml.F32, 0), "f16": (ggml.F16, 1), "bf16": (ggml.BF16, 32)}
"""The type of the tensors, and llama.cpp's number for it as `general.file_type`."""
FLOAT32 = 6
DESCRIBED = ("general.architecture", "general.name", "general.license", "general.base_model.", "general.languages")


def export(exports: list[LoraGgufExport], source: Source, outline: Outline, out: Path, name: str) -> list[OutputFile]:
    """Writes lora_gguf/NAME-lora-TYPE.gguf for each. StageFailure conversion_failed for what is more than LoRA."""
    shards = read_shards(source.base)
    reason = outline.obstacle or reason_for_peft(source.adapter, source.base, shards)
    if reason is not None:
        raise failed(f"The adapter cannot be a GGUF: {reason}.", FailureCode.CONVERSION_FAILED)
    tensors = factors(source.adapter, Merger(shards, source.adapter), outline)
    header = next(iter(outline.headers.values()))
    (out / "lora_gguf").mkdir()
    files = []
    for export in exports:
        path = out / "lora_gguf" / f"{name}-lora-{export.type}.gguf"
        digest = write(path, described(header, source.adapter, export.type), tensors, KINDS[export.type][0])
        files.append(OutputFile(f"lora_gguf/{path.name}", "lora_gguf", f"lora_gguf/{path.name}", path.stat().st_size, digest))
    return files


def factors(adapter: Adapter, merger: Merger, outline: Outline) -> dict[str, np.ndarray]:
    """By their names in the file, in fp32. StageFailure for an adapter that does not fit the base model."""
    tensors = {}
    for name, content in outline.contents.items():
        if isinstance(content, Matrix) and content.entry.name.removesuffix(".weight") in adapter.modules:
            pair = merger.factors(content.entry)
            assert pair is not None
            tensors[f"{name}.lora_a"] = pair.a
            tensors[f"{name}.lora_b"] = pair.b if content.order is None else pair.b[content.order]
    return tensors


def described(model: Header, adapter: Adapter, kind: str) -> dict[str, bytes]:
    """The metadata; what it says about the model is the model's."""
    fields = {key: value for key, value in model.fields.items() if key.startswith(DESCRIBED)}
    fields |= {"general.type": pack_text("adapter"), "adapter.type": pack_text("lora")}
    rank = adapter.config["r"]
    alpha = adapter.config["lora_alpha"] * (math.sqrt(rank) if adapter.config["use_rslora"] else 1)
    fields["adapter.lora.alpha"] = struct.pack("<If", FLOAT32, alpha)
    numbers = {"general.file_type": KINDS[kind][1], "general.quantization_version": QUANTIZATION_VERSION}
    return Header(fields, []).with_fields(**numbers).fields


def write(path: Path, fields: dict[str, bytes], tensors: dict[str, np.ndarray], kind: ggml.Kind) -> str:
    """Returns the file's sha256."""
    slots = placed([Slot(name, tensor.shape, kind) for name, tensor in tensors.items()])
    output = Output(Target(path, Header(fields, slots)))
    for slot in slots:
        output.write(slot.offset, as_kind(tensors[slot.name], kind))
    return output.close()
