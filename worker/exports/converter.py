"""llama.cpp's own converter, in a process of its own.

The converter brings a `gguf` package that is newer than the one on PyPI under the same name and version: it runs with its own
folder in front of everything else, never inside this process.
"""

import errno
import math
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from importlib.metadata import distributions, version
from pathlib import Path
from typing import IO

from app.disk import is_full
from app.jobs.states import FailureCode
from worker.exports.gguf_header import Header, read_header
from worker.leftovers import MARK
from worker.stages import Inputs, Report, StageFailure
from worker.stages.__main__ import die_with

SCRIPT = "convert_hf_to_gguf.py"
OUTLINER = Path(__file__).with_name("outline_script.py")
REPORT_SECONDS = 1.0
KEPT_LINES = 400
LOG_PREFIX = re.compile(r"^(INFO|WARNING|ERROR):[\w.-]+:")
PROGRESS = re.compile(r"^Writing: +(\d+)%")


def find_versions(folder: Path) -> dict[str, str]:
    """Of the converter in the folder and of the package that carries ggml."""
    found = {package.name: package.version for package in distributions(path=[str(folder)])}
    return found | {"xllamacpp": version("xllamacpp")}


def run_converter(arguments: list[str], path: Path, what: str, inputs: Inputs, report: Report) -> None:
    """Writes `path`, which is `what` for the progress. Raises StageFailure `conversion_failed` when the converter gives up."""
    run([str(inputs.converter_dir / SCRIPT), "--outfile", str(path), *arguments], what, inputs, report, path.parent)


def run(command: list[str], what: str, inputs: Inputs, report: Report, place: Path) -> None:
    with begun(command, inputs) as process:
        finish(process, what, report, place)


@contextmanager
def begun(command: list[str], inputs: Inputs) -> Iterator[subprocess.Popen[bytes]]:
    """A process of its own, which does not outlive the block. It is asked something on its stdin, or finished at once."""
    with tempfile.TemporaryDirectory() as home:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(inputs.converter_dir, Path(home)),
            preexec_fn=partial(die_with, os.getpid()),
        )
        with process:
            try:
                yield process
            finally:
                process.kill()


def begun_outliner(inputs: Inputs) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """One that is ready for `outlines.ask` when its imports are done, which takes seconds."""
    return begun(["-P", str(OUTLINER), str(inputs.converter_dir / SCRIPT)], inputs)


def finish(process: subprocess.Popen[bytes], what: str, report: Report, place: Path, question: str = "") -> None:
    """Waits for its end; it writes to `place`. StageFailure `conversion_failed` when it gives up."""
    assert process.stdin is not None and process.stdout is not None
    with suppress(BrokenPipeError), process.stdin:
        process.stdin.write(question.encode())
    last_lines = follow(process.stdout, what, report)
    if code := process.wait():
        raise failure(code, last_lines, place)


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
    reported = -math.inf
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


def check(path: Path, title: str, *, whole: bool = True) -> Header:
    """The header of a file that the converter wrote, the `whole` of it or no more than the header.

    StageFailure verification_failed when it is cut off, or is not what was asked for.
    """
    try:
        header = read_header(path)
        is_cut = whole and path.stat().st_size != header.file_bytes
    except (ValueError, OSError, struct.error, IndexError) as problem:
        raise invalid("that is cut off") from problem
    if is_cut:
        raise invalid("that is cut off")
    if not header.slots or "general.name" not in header.fields or header.text("general.name") != title:
        raise invalid("without the model in it")
    return header


def invalid(how: str) -> StageFailure:
    return failed(f"llama.cpp's converter wrote a file {how}.", FailureCode.VERIFICATION_FAILED)


def failed(message: str, code: FailureCode = FailureCode.CONVERSION_FAILED) -> StageFailure:
    hint = "The stage's log has the converter's output. Without gguf in exports the job ends with the adapter."
    return StageFailure(code, message, hint=hint, param="exports")
