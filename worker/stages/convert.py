"""Makes the exports that llama.cpp reads, in one pass over the weights."""

import tempfile
from pathlib import Path

from app.jobs.spec import GgufExport, JobSpec, LoraGgufExport
from worker.exports import converter
from worker.stages import Inputs, Outcome, OutputFile, Report, StageFailure


def run(spec: JobSpec, inputs: Inputs, out: Path, report: Report) -> Outcome:
    """`files` are the models among the files, by name, `adapters` the adapters, and `carrier` is a model's file that the latter
    can be tried on; `route` is `stream`, or `converter` where llama.cpp's converter had to write them; `versions` are those of
    the packages that did."""
    exports = {export.model_dump_json(): export for export in spec.exports}.values()
    models = [export for export in exports if isinstance(export, GgufExport)]
    adapters = [export for export in exports if isinstance(export, LoraGgufExport)]
    files: list[OutputFile] = []
    try:
        with tempfile.TemporaryDirectory(dir=out) as scratch, converter.begun_outliner(inputs) as outliner:
            from worker.exports import gguf, lora_gguf  # seconds of imports: at the same time as the outliner's
            from worker.exports.sources import Source

            source = Source(spec, inputs, Path(scratch), report, outliner)
            made = models or [gguf.exact(source.merger)]
            with gguf.begun(made, source.merger) as early:
                outline = source.outline(list(dict.fromkeys(gguf.kind_for(export, source.merger) for export in made)))
            if adapters:
                files += lora_gguf.export(adapters, source, outline, out, gguf.slug(inputs.title))
            written, route = gguf.export(made, source, outline, out, early)
    except StageFailure as failure:
        if failure.param == "exports":
            others = [export.model_dump() for export in exports if export not in [*models, *adapters]]
            failure.patch = {"exports": others or [{"kind": "merged"}]}
        raise
    values = {
        "files": [file.name for file in written if models],
        "adapters": [file.name for file in files],
        "carrier": written[gguf.find_most_exact(made)].name,
        "route": route,
        "versions": converter.find_versions(inputs.converter_dir),
    }
    return Outcome(values, [*files, *(written if models else [])])
