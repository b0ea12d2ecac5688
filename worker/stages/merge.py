"""Merges the trained adapter onto the 16-bit base model. `merged/` is then a normal model folder."""

from pathlib import Path

from app.jobs.spec import JobSpec
from worker.exports import companions, merged, model_folder
from worker.space import require_space
from worker.stages import Inputs, Outcome, OutputFile, Report


def run(spec: JobSpec, inputs: Inputs, out: Path, report: Report) -> Outcome:
    base = model_folder.find_base(spec, inputs, report)
    into = out / "merged"
    into.mkdir()
    require_space(out, model_folder.size_of(base), "The merged model")
    reason, digests = model_folder.write(spec, inputs, base, into, report)
    dtype = companions.DTYPE_NAMES[merged.merged_dtype(merged.read_shards(base))]
    values = {"merged": "merged", "method": "peft" if reason else "stream", "dtype": dtype}
    return Outcome(values, list_files(out, into, digests))


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
