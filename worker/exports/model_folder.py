"""The folder of a merged model: written whole, or without its matrices, for whom only the rest matters."""

import time
from pathlib import Path

from app.jobs.spec import JobSpec
from app.jobs.states import Stage
from worker.data import base_models
from worker.exports import companions, merged
from worker.exports.floats import DTYPES, as_bytes
from worker.exports.shards import shard_header
from worker.exports.tokenizer_files import copy_template
from worker.stages import Inputs, Report

REPORT_SECONDS = 1.0


def find_base(spec: JobSpec, inputs: Inputs, report: Report) -> Path:
    """The folder of the base model that the adapter was trained on, at the same revision."""
    revision = inputs.values[Stage.PREPARE]["base_model"]["revision"]
    token = inputs.secret(spec.hub_token)
    base = base_models.fetch(
        spec.base_model, revision, cache_dir=inputs.cache_dir, models_dir=inputs.models_dir, token=token, report=report
    )
    return base.path


def write(spec: JobSpec, inputs: Inputs, base: Path, into: Path, report: Report) -> tuple[str | None, dict[str, str]]:
    """Writes the merged model. Returns why peft merged it, if it did, and the sha256 of those files that are known already."""
    adapter, shards = merged.Adapter.at(inputs.folders[Stage.TRAIN] / "adapter"), merged.read_shards(base)
    reason = merged.reason_for_peft(adapter, base, shards)
    if reason is None:
        tied, digests = None, merged.merge(merged.Merger(shards, adapter), into, progress_to(report))
    else:
        from worker.exports import merged_by_peft  # costs the import of transformers and peft

        print(f"peft merges this adapter: {reason}.", flush=True)
        dtype = companions.DTYPE_NAMES[merged.merged_dtype(shards)]
        tied, digests = merged_by_peft.merge(inputs.folders[Stage.TRAIN] / "adapter", base, into, dtype), {}
    describe(spec, inputs, base, into, dtype=merged.merged_dtype(shards), tied=tied)
    return reason, digests


def size_of(base: Path) -> int:
    """In bytes, of the merged model."""
    return merged.merged_bytes(merged.read_shards(base)) + companions.size_of(base)


def write_without_matrices(spec: JobSpec, inputs: Inputs, base: Path, into: Path, merger: merged.Merger) -> None:
    """Writes the merged model with holes in its files where the matrices belong: they take no room, and read as zeros."""
    for name, shard in merger.files().items():
        header = shard_header(shard.outputs)
        with shard.source.open("rb") as read, (into / name).open("wb") as written:
            written.write(header)
            for entry, output in zip(shard.entries, shard.outputs, strict=True):
                if len(entry.shape) <= 1 and entry.dtype in DTYPES:
                    written.write(as_bytes(merger.rows(read, entry, None, 0, entry.rows)))
                else:
                    written.seek(output.bytes, 1)
            written.truncate(len(header) + sum(output.bytes for output in shard.outputs))
    merged.write_index(merger, into)
    describe(spec, inputs, base, into, dtype=merger.dtype, tied=None)


def describe(spec: JobSpec, inputs: Inputs, base: Path, into: Path, *, dtype: str, tied: bool | None) -> None:
    """Writes what stands beside the weights."""
    companions.copy(base, into, dtype=dtype, tied=tied)
    copy_template(inputs.folders[Stage.PREPARE], into)
    companions.write_card(base, into, title=inputs.title, base_model=spec.base_model)


def progress_to(report: Report, done_what: str = "merged") -> merged.Progress:
    """Reports how far the work is, about once a second."""
    last = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= REPORT_SECONDS:
            last = time.monotonic()
            report("progress", message=f"{done_what} {done} of {total} tensors")

    return tell
