"""Makes the exports that llama.cpp reads, in one pass over the weights."""

import tempfile
from pathlib import Path

from app.jobs.spec import GgufExport, JobSpec, LoraGgufExport
from worker.exports import converter
from worker.stages import Inputs, Outcome, Report, StageFailure


def run(spec: JobSpec, inputs: Inputs, out: Path, report: Report) -> Outcome:
    """`files` are the models among the files, by name; `route` is `stream`, or `converter` where llama.cpp's converter had to
    write them; `versions` are those of the packages that did."""
    exports = {export.model_dump_json(): export for export in spec.exports}.values()
    models = [export for export in exports if isinstance(export, GgufExport)]
    adapters = [export for export in exports if isinstance(export, LoraGgufExport)]
    files, route = [], "stream"
    try:
        with tempfile.TemporaryDirectory(dir=out) as scratch, converter.begun_outliner(inputs) as outliner:
            from worker.exports import gguf, lora_gguf  # seconds of imports: at the same time as the outliner's
            from worker.exports.sources import Source

            source = Source(spec, inputs, Path(scratch), report, outliner)
            gguf.load_kernels(models)
            kinds = [gguf.kind_for(export, source.merger) for export in models] or [source.merger.dtype.lower()]
            outline = source.outline(list(dict.fromkeys(kinds)))
            if adapters:
                files += lora_gguf.export(adapters, source, outline, out, gguf.slug(inputs.title))
            if models:
                written, route = gguf.export(models, source, outline, out)
                files += written
    except StageFailure as failure:
        if failure.param == "exports":
            others = [export.model_dump() for export in exports if export not in [*models, *adapters]]
            failure.patch = {"exports": others or [{"kind": "merged"}]}
        raise
    values = {"files": [file.name for file in files if file.kind == "gguf"], "route": route}
    return Outcome(values | {"versions": converter.find_versions(inputs.converter_dir)}, files)
