"""Makes the exports that llama.cpp reads, in one pass over the weights."""

import tempfile
from pathlib import Path
from typing import Any

from app.jobs.spec import GgufExport, JobSpec
from worker.exports import gguf
from worker.exports.sources import Source
from worker.stages import Inputs, Outcome, Report, StageFailure


def run(spec: JobSpec, inputs: Inputs, out: Path, report: Report) -> Outcome:
    exports = list({export.model_dump_json(): export for export in spec.exports if isinstance(export, GgufExport)}.values())
    try:
        with tempfile.TemporaryDirectory(dir=out) as scratch:
            source = Source(spec, inputs, Path(scratch), report)
            kinds = list(dict.fromkeys(gguf.kind_for(export, source.merger) for export in exports))
            files, route = gguf.export(exports, source, source.outline(kinds), out)
    except StageFailure as failure:
        if failure.param == "exports":
            others = [other.model_dump() for other in spec.exports if other.kind != "gguf"]
            failure.patch = {"exports": others or [{"kind": "merged"}]}
        raise
    values: dict[str, Any] = {"files": [file.name for file in files], "route": route}
    return Outcome(values, files)
