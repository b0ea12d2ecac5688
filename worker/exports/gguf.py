"""GGUF by llama.cpp's own converter, in a process of its own.

The converter brings a `gguf` package that is newer than the one on PyPI under the same name and version: it runs with its own
folder in front of everything else, never inside this process.
"""

import errno
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections import deque
from collections.abc import Iterator
from functools import partial
from math import prod
from pathlib import Path
from typing import IO

from app.disk import is_full
from app.jobs.spec import GgufExport
from app.jobs.states import FailureCode
from worker.data.gguf_weights import read_gguf
from worker.exports.shards import read_entries
from worker.leftovers import MARK
from worker.stages import Inputs, OutputFile, Report, StageFailure
from worker.stages.__main__ import die_with

SCRIPT = "convert_hf_to_gguf.py"
REPORT_SECONDS = 1.0
BITS = {"f16": 16.0, "bf16": 16.0, "q8_0": 8.5}
"""A weight's: q8_0 has a 16-bit scale for each 32 weights of 8 bits."""
KEPT_LINES = 400
LOG_PREFIX = re.compile(r"^(INFO|WARNING|ERROR):[\w.-]+:")
PROGRESS = re.compile(r"^Writing: +(\d+)%")


def export(options: GgufExport, model: Path, out: Path, inputs: Inputs, report: Report) -> OutputFile:
    """Writes gguf/TITLE-QUANTIZATION.gguf. Raises StageFailure `conversion_failed` when the converter gives up,
    `verification_failed` when what it wrote is not the model."""
    path = out / "gguf" / f"{slug(inputs.title)}-{options.quantization}.gguf"
    path.parent.mkdir(exist_ok=True)
    convert(model, path, options.quantization, inputs, report)
    check(path, inputs.title)
    return OutputFile.of(out, path, name=f"gguf/{path.name}", kind="gguf")


def size_of(options: GgufExport, model: Path) -> int:
    """In bytes: the weights of a merged model in the asked type, and its tokenizer."""
    entries = [entry for shard in model.glob("*.safetensors") for entry in read_entries(shard)]
    bits = BITS.get(options.quantization, 16.0)
    return int(sum(prod(entry.shape) for entry in entries) * bits / 8) + sum(p.stat().st_size for p in model.glob("tokenizer*"))


def slug(title: str) -> str:
    """A title as the name of a file and an artifact: only [A-Za-z0-9._-], and it starts with neither a dot nor a hyphen."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-.")[:100] or "model"


def convert(model: Path, path: Path, quantization: str, inputs: Inputs, report: Report) -> None:
    arguments = ["--outtype", quantization, f"--model-name={inputs.title}", str(model)]
    run_converter(arguments, path, quantization, inputs, report)


def run_converter(arguments: list[str], path: Path, what: str, inputs: Inputs, report: Report) -> None:
    """Writes `path`, which is `what` for the progress. Raises StageFailure `conversion_failed` when the converter gives up."""
    with tempfile.TemporaryDirectory() as home:
        process = subprocess.Popen(
            [sys.executable, str(inputs.converter_dir / SCRIPT), "--outfile", str(path), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(inputs.converter_dir, Path(home)),
            preexec_fn=partial(die_with, os.getpid()),
        )
        assert process.stdout is not None
        try:
            last_lines = follow(process.stdout, what, report)
            process.wait()
        finally:
            process.kill()
            process.wait()
    if process.returncode:
        raise failure(process.returncode, last_lines, path.parent)


def environment(converter_dir: Path, home: Path) -> dict[str, str]:
    """Offline, with an empty cache: the tokenizer is loaded in a way that would run code from a repository if it could get any.

    One thread, because the quantisation is NumPy's and a second one only burns time.
    """
    settings = {
        "PYTHONPATH": str(converter_dir),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(home),
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
    }
    return {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH", MARK) if name in os.environ} | settings


def follow(output: IO[bytes], what: str, report: Report) -> list[str]:
    """Passes the converter's output on to the log, its progress bar to the report. Returns the last lines."""
    kept: deque[str] = deque(maxlen=KEPT_LINES)
    reported = 0.0
    for line in split_lines(output):
        progress = PROGRESS.match(line)
        if not progress:
            print(line, flush=True)
            kept.append(line)
        elif time.monotonic() - reported >= REPORT_SECONDS:
            reported = time.monotonic()
            report("progress", message=f"writing {what}: {progress[1]} %")
    return list(kept)


def split_lines(output: IO[bytes]) -> Iterator[str]:
    """Lines that end in a newline or, as a progress bar's do, in a carriage return. Empty ones are left out."""
    rest = b""
    while chunk := os.read(output.fileno(), 65536):
        *lines, rest = re.split(rb"[\r\n]+", rest + chunk)
        yield from (line.decode(errors="replace") for line in lines if line)
    if rest:
        yield rest.decode(errors="replace")


def failure(code: int, lines: list[str], place: Path) -> Exception:
    """What the converter's end means for the user."""
    text = "\n".join(lines)
    last = LOG_PREFIX.sub("", next((line for line in reversed(lines) if line.strip()), "no output"))
    if is_full(OSError(text), place):
        return OSError(errno.ENOSPC, "The disk is full.")
    if code == -signal.SIGKILL or "MemoryError" in last:
        return MemoryError("The converter was killed.")
    if unknown := re.search(r"chkhsh: +(\w+)", text):
        return failed(f"llama.cpp's converter does not know the pre-tokenizer of this model (its hash is {unknown[1]}).")
    if unsupported := re.search(r"Model (\w+) is not supported", text):
        return failed(f"llama.cpp's converter does not know the architecture {unsupported[1]}.")
    return failed(f"llama.cpp's converter failed: {last}")


def check(path: Path, title: str) -> None:
    """StageFailure verification_failed for a file that is cut off, or is not what was asked for."""
    try:
        metadata, tensors = read_gguf(path)
    except (ValueError, OSError, struct.error) as problem:
        message = "llama.cpp's converter wrote a file that is cut off."
        raise failed(message, FailureCode.VERIFICATION_FAILED) from problem
    if not tensors or metadata["general.name"] != title:
        message = "llama.cpp's converter wrote a file without the model in it."
        raise failed(message, FailureCode.VERIFICATION_FAILED)


def failed(message: str, code: FailureCode = FailureCode.CONVERSION_FAILED) -> StageFailure:
    hint = "The stage's log has the converter's output. Without gguf in exports the job ends with the merged model."
    return StageFailure(code, message, hint=hint, param="exports")
