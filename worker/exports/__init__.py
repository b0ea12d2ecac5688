"""From a trained adapter to the files that a user downloads.

The adapter comes from the stage `train`, the merged model from `merge`. Every other export is made from the merged model by the
stage `convert`, and has a module here with a function `export(options, model, out, inputs, report)`: `options` are the spec's,
`model` is the folder of the merged model; it writes one file below `out` and returns it as an OutputFile.
"""

EXPORTERS: dict[str, str] = {
    "gguf": "worker.exports.gguf",
}
