"""What llama.cpp's converter would make of a model, asked without giving it the matrices.

Names, shapes, types, metadata and vocabulary are the converter's own words, so that this holds for architectures that nobody
here has heard of. See outline_script.py for how it is asked.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import numpy as np

from worker.exports.converter import check, finish
from worker.exports.floats import DTYPES
from worker.exports.gguf_header import Header
from worker.exports.gguf_writing import Contents, Matrix
from worker.exports.merged import Merger
from worker.stages import Report

VERIFIED = frozenset(
    {"gemma", "gemma2", "gemma3", "granite", "llama", "olmo2", "phi3", "qwen2", "qwen3", "smollm3"},
)
"""The architectures, in llama.cpp's words, whose files were compared with the converter's, byte by byte. Mistral is a llama."""


@dataclass(frozen=True)
class Outline:
    """The headers by the converter's name for the type, and what belongs behind them.

    `obstacle` says why the contents cannot be had without the converter; they are empty then.
    """

    headers: dict[str, Header]
    contents: Contents
    obstacle: str | None


def ask(
    outliner: Popen[bytes], folder: Path, kinds: list[str], merger: Merger, title: str, report: Report, into: Path
) -> Outline:
    """`folder` holds the model, with or without its matrices; `into` is an empty folder for the answer. It can be asked once.

    StageFailure conversion_failed when the converter does not know the model, verification_failed for an answer that is none.
    """
    question = {"into": str(into), "kinds": kinds, "arguments": [f"--model-name={title}", str(folder)]}
    finish(outliner, "the outline", report, into, json.dumps(question))
    headers = {kind: check(into / f"{kind}.gguf", title, whole=False) for kind in kinds}
    listed = json.loads((into / "outline.json").read_text())
    arrays = dict(np.load(into / "outline.npz", allow_pickle=False))
    return compose(headers, listed, arrays, merger)


def compose(headers: dict[str, Header], listed: list[dict], arrays: dict[str, np.ndarray], merger: Merger) -> Outline:
    header = next(iter(headers.values()))
    architecture = header.text("general.architecture")
    if architecture not in VERIFIED:
        return Outline(headers, {}, f"the architecture {architecture} has not been compared with the converter's files")
    stored = {entry.name: Matrix(path, entry) for path, entries in merger.shards.items() for entry in entries}
    shapes = {slot.name: slot.shape for slot in header.slots}
    contents: Contents = {}
    for place in listed:
        name, source = place["name"], place["source"]
        if source is None and name in arrays:
            contents[name] = arrays[name]
        elif source in stored and stored[source].entry.shape == shapes[name] and stored[source].entry.dtype in DTYPES:
            matrix = stored[source]
            contents[name] = Matrix(matrix.path, matrix.entry, arrays[place["order"]] if place["order"] else None)
        else:
            return Outline(headers, {}, f"the converter makes {name} out of more than one tensor, or changes it")
    return Outline(headers, contents, None)
