"""From a trained adapter to the files that a user downloads.

The adapter comes from the stage `train`, the merged model from `merge`. Every other export is made from the merged model by
`convert` and has a module here with `export(options: Export, model: Path, out: Path, inputs: Inputs, report: Report) -> OutputFile`,
which reads the model folder and writes one file below `out`.
"""

EXPORTERS: dict[str, str] = {
    "gguf": "worker.exports.gguf",
}
