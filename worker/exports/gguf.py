"""GGUF files, all of them from one reading of the base model and the adapter.

llama.cpp's converter says what belongs into them, ggml quantises, and `gguf_writing` writes. A model that this was not verified
for goes through the converter's own hands.
"""

import re
import unicodedata
from contextlib import AbstractContextManager
from pathlib import Path

from app.jobs.spec import GgufExport
from worker.exports import converter, gguf_writing, head_start
from worker.exports.ggml import Q4_K, Q5_K, Q6_K, Q8_0
from worker.exports.gguf_header import Header
from worker.exports.gguf_writing import Matrix, Target
from worker.exports.merged import Merger
from worker.exports.mixtures import MIXTURES, mixed, plain
from worker.exports.model_folder import progress_to
from worker.exports.outlines import Outline
from worker.exports.shards import Entry
from worker.exports.sources import Source
from worker.space import require_space
from worker.stages import OutputFile

KERNELS = {"q8_0": [Q8_0], "q6_k": [Q6_K], "q5_k_m": [Q5_K, Q6_K], "q4_k_m": [Q4_K, Q6_K]}
"""What most of a file's matrices are made by."""


def kind_for(export: GgufExport, merger: Merger) -> str:
    """The type that the converter is asked for: a mixture is made from the weights' own 16 bits."""
    return merger.dtype.lower() if export.quantization in MIXTURES else export.quantization


def exact(merger: Merger) -> GgufExport:
    """One that loses nothing of the weights."""
    return GgufExport.model_validate({"quantization": merger.dtype.lower()})


def find_most_exact(exports: list[GgufExport]) -> int:
    """Which of them loses least."""
    order = ("f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m")
    return min(range(len(exports)), key=lambda place: order.index(exports[place].quantization))


def begun(exports: list[GgufExport], merger: Merger) -> AbstractContextManager[gguf_writing.Blocks]:
    """What can be done while the converter thinks: the blocks are for `export`. A mixture needs the header first."""
    machine_code = [kind for export in exports for kind in KERNELS.get(export.quantization, [])]
    kinds = [plain(export.quantization) for export in exports]
    return head_start.begun(merger, [] if None in kinds else [kind for kind in kinds if kind], machine_code)


def export(
    exports: list[GgufExport], source: Source, outline: Outline, out: Path, early: gguf_writing.Blocks
) -> tuple[list[OutputFile], str]:
    """Writes gguf/TITLE-QUANTIZATION.gguf for each. Returns the files, and `stream` or `converter` for how they were made.

    Raises StageFailure `conversion_failed` when the converter gives up, `verification_failed` when what it wrote is not the
    model, and what the merge raises.
    """
    (out / "gguf").mkdir()
    targets = [plan(export, source, outline, out) for export in exports]
    require_space(out, sum(target.header.file_bytes for target in targets), "The GGUF files")
    if outline.obstacle is None:
        digests = gguf_writing.write(targets, outline.contents, source.merger, progress_to(source.report, "wrote"), early)
        files = [
            OutputFile(f"gguf/{t.path.name}", "gguf", f"gguf/{t.path.name}", t.path.stat().st_size, digest)
            for t, digest in zip(targets, digests, strict=True)
        ]
        return files, "stream"
    message = f"llama.cpp's converter writes the GGUF files, which takes longer: {outline.obstacle}."
    source.report("warning", code="converter_route", message=message)
    paths: dict[str, Path] = {export.quantization: target.path for export, target in zip(exports, targets, strict=True)}
    for export, target in zip(exports, targets, strict=True):
        write_by_converter(export, target, paths, source)
    return [OutputFile.of(out, t.path, name=f"gguf/{t.path.name}", kind="gguf") for t in targets], "converter"


def plan(export: GgufExport, source: Source, outline: Outline, out: Path) -> Target:
    path = out / "gguf" / f"{slug(source.inputs.title)}-{export.quantization}.gguf"
    header = outline.headers[kind_for(export, source.merger)]
    if export.quantization in MIXTURES:
        return Target(path, mixed(header, export.quantization), rounded=header)
    return Target(path, header)


def write_by_converter(export: GgufExport, target: Target, paths: dict[str, Path], source: Source) -> None:
    """A mixture is made from the converter's 16-bit file, which `paths`, by quantization, may have as an export itself."""
    inputs, report = source.inputs, source.report
    kind = kind_for(export, source.merger)
    path = paths.get(kind, source.scratch / f"{kind}.gguf")
    if not path.exists():
        converter.run_converter(
            ["--outtype", kind, f"--model-name={inputs.title}", str(source.whole)], path, kind, inputs, report
        )
    header = converter.check(path, inputs.title)
    if path != target.path:
        contents, merger = stored(path, header)
        gguf_writing.write([target], contents, merger, progress_to(report, "wrote"))


def stored(path: Path, header: Header) -> tuple[gguf_writing.Contents, Merger]:
    """The weights of a GGUF file in 16 bits."""
    start = len(header.to_bytes())
    entries = [Entry(slot.name, slot.kind.name, slot.shape, start + slot.offset, slot.bytes) for slot in header.slots]
    return {entry.name: Matrix(path, entry) for entry in entries}, Merger({path: entries}, None)


def slug(title: str) -> str:
    """A title as the name of a file and an artifact: only [A-Za-z0-9._-], and it starts with neither a dot nor a hyphen."""
    ascii_only = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", ascii_only).strip("-.")[:100] or "model"
