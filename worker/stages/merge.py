"""Merges the trained adapter onto the 16-bit base model. `merged/` is then a normal model folder."""

import shutil
import time
from pathlib import Path

import torch

from app.jobs.spec import JobSpec
from app.jobs.states import Stage
from worker.data import base_models
from worker.exports import companions, merged
from worker.space import require_space
from worker.stages import Inputs, Outcome, OutputFile, Report

REPORT_SECONDS = 1.0


def run(spec: JobSpec, inputs: Inputs, out: Path, report: Report) -> Outcome:
    base = find_base(spec, inputs, report)
    folder = inputs.folders[Stage.TRAIN] / "adapter"
    into = out / "merged"
    into.mkdir()
    adapter, shards = merged.Adapter.at(folder), merged.read_shards(base)
    dtype = merged.merged_dtype(shards)
    require_space(out, merged.merged_bytes(shards) + companions.size_of(base), "The merged model")
    reason = merged.reason_for_peft(adapter, base, shards)
    if reason is None:
        torch.set_num_threads(1)  # sums of small tensors wait for memory: more threads only spin
        tied, digests = None, merged.merge(adapter, shards, into, progress_to(report))
    else:
        from worker.exports import merged_by_peft  # costs the import of transformers and peft

        print(f"peft merges this adapter: {reason}.", flush=True)
        tied, digests = merged_by_peft.merge(folder, base, into, merged.TORCH_DTYPES[dtype]), {}
    companions.copy(base, into, dtype=dtype, tied=tied)
    copy_template(inputs, into)
    companions.write_card(base, into, title=inputs.title, base_model=spec.base_model)
    values = {"merged": "merged", "method": "peft" if reason else "stream", "dtype": companions.DTYPE_NAMES[dtype]}
    return Outcome(values, list_files(out, into, digests) if spec.exports_of("merged") else [])


def copy_template(inputs: Inputs, into: Path) -> None:
    """The chat template that `prepare` gave a base model without one: the model must be asked as it was trained."""
    template = inputs.folders[Stage.PREPARE] / "chat_template.jinja"
    if template.exists():
        shutil.copyfile(template, into / template.name)


def find_base(spec: JobSpec, inputs: Inputs, report: Report) -> Path:
    """The folder of the base model that the adapter was trained on, at the same revision."""
    revision = inputs.values[Stage.PREPARE]["base_model"]["revision"]
    token = inputs.secret(spec.hub_token)
    base = base_models.fetch(
        spec.base_model, revision, cache_dir=inputs.cache_dir, models_dir=inputs.models_dir, token=token, report=report
    )
    return base.path


def progress_to(report: Report) -> merged.Progress:
    """Reports how far the merge is, about once a second."""
    last = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= REPORT_SECONDS:
            last = time.monotonic()
            report("progress", message=f"merged {done} of {total} tensors")

    return tell


def list_files(out: Path, folder: Path, digests: dict[str, str]) -> list[OutputFile]:
    """Every file of the folder as an artifact; `digests` are the hashes that are known already."""
    files = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        inside = path.relative_to(folder).as_posix()
        if inside in digests:
            files.append(
                OutputFile(f"merged/{inside}", "merged", str(path.relative_to(out)), path.stat().st_size, digests[inside])
            )
        else:
            files.append(OutputFile.of(out, path, name=f"merged/{inside}", kind="merged"))
    return files
