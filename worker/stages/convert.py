"""Makes the exports that start from the merged model, one after the other."""

import importlib
from pathlib import Path

from app.jobs.spec import Export, JobSpec
from app.jobs.states import Stage
from worker.exports import EXPORTERS
from worker.space import require_space
from worker.stages import Inputs, Outcome, Report, StageFailure


def run(spec: JobSpec, inputs: Inputs, out: Path, report: Report) -> Outcome:
    model = inputs.folders[Stage.MERGE] / inputs.values[Stage.MERGE]["merged"]
    files = []
    exports = [(export, importlib.import_module(EXPORTERS[export.kind])) for export in wanted(spec)]
    require_space(out, sum(exporter.size_of(export, model) for export, exporter in exports), "The exported files")
    for export, exporter in exports:
        try:
            files.append(exporter.export(export, model, out, inputs, report))
        except StageFailure as failure:
            others = [other.model_dump() for other in spec.exports if other.kind != export.kind]
            failure.patch = {"exports": others or [{"kind": "merged"}]}
            raise
    return Outcome({"files": [file.name for file in files]}, files)


def wanted(spec: JobSpec) -> list[Export]:
    """The exports that this stage makes, each once, in the order of the spec."""
    unique = {export.model_dump_json(): export for export in spec.exports if export.kind in EXPORTERS}
    return list(unique.values())
