"""Runs one attempt: `python -m worker.stages DIR [SUPERVISOR_PID]`, with the secrets as a JSON object on stdin.

With the process id of its supervisor, the attempt ends when that process does.
"""

import ctypes
import importlib
import json
import os
import resource
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path

from app.disk import MAKE_SPACE, free_bytes, in_words, is_full
from app.jobs.spec import JobSpec
from app.jobs.states import FailureCode, Stage
from app.storage import keep_only
from worker.stages import DISK_FULL_STATUS, STAGES, Inputs, Outcome, Report, StageFailure, StageStopped
from worker.stages.masks import Mask, MaskedStream

PR_SET_PDEATHSIG = 1


def main(attempt: Path, supervisor: int | None) -> None:
    if supervisor is not None:
        die_with(supervisor)
    try:
        result = carry_out(attempt)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        result |= {"peak_host_bytes": peak_host_bytes(), "peak_device_bytes": peak_device_bytes()}
        write_whole(attempt / "result.json", json.dumps(result))
    except Exception as problem:
        if not is_full(problem, attempt):
            raise
        sys.exit(DISK_FULL_STATUS)


def carry_out(attempt: Path) -> dict:
    """Runs the stage and says how it ended."""
    request = json.loads((attempt / "input.json").read_text())
    inputs = Inputs.from_json(request["inputs"], secrets=json.loads(sys.stdin.read() or "{}"))
    spec = JobSpec.model_validate(request["spec"]) if request["spec"] else None
    out = attempt / "out"
    out.mkdir(exist_ok=True)
    mask = Mask(inputs.secrets.values())
    sys.stdout, sys.stderr = MaskedStream(sys.stdout, mask), MaskedStream(sys.stderr, mask)
    report = Report(attempt / "events.jsonl", mask)
    signal.signal(signal.SIGTERM, lambda *_: report.request_stop())
    made: dict = {}
    try:
        stage = importlib.import_module(STAGES[Stage(request["stage"])])
        return {"status": "succeeded", **as_json(stage.run(spec, inputs, out, report))}
    except StageStopped:
        return {"status": "stopped"}
    except Exception as problem:
        if is_full(problem, attempt):
            error = full_disk(attempt, inputs)
            keep_only(out, {"checkpoints/step-*"})  # room for the log and the result
        elif isinstance(problem, StageFailure):
            error = {key: getattr(problem, key) for key in ("code", "message", "hint", "param", "patch")}
            made = as_json(problem.outcome) if problem.outcome else {}
        else:
            error = describe(problem)
        with suppress(OSError):  # the log, too, may be on a full disk
            traceback.print_exc()
    return {"status": "failed", "error": mask(error), **made}


def full_disk(attempt: Path, inputs: Inputs) -> dict:
    """Two disks may be meant; it is the one with less room."""
    places = {attempt: "the data folder", inputs.cache_dir: "the cache of base models"}
    place = min(places, key=free_bytes)
    message = f"The disk of {places[place]} is full: {in_words(free_bytes(place))} were free when a write failed."
    return {"code": FailureCode.DISK_FULL, "message": message, "hint": f"{MAKE_SPACE}, then retry the job."}


def as_json(outcome: Outcome) -> dict:
    return {"values": outcome.values, "files": [vars(file) for file in outcome.files]}


def describe(problem: Exception) -> dict:
    """The stored error for what no stage foresaw. The traceback is in the log, not in the answer."""
    if isinstance(problem, MemoryError) or type(problem).__name__ == "OutOfMemoryError":
        hint = "Lower training.batch_size or training.max_seq_length."
        return {"code": FailureCode.OUT_OF_MEMORY, "message": "The device ran out of memory.", "hint": hint}
    hint = "Read the stage's log; if it does not explain the failure, report it as a bug."
    return {"code": FailureCode.INTERNAL, "message": f"{type(problem).__name__} in the stage process.", "hint": hint}


def die_with(supervisor: int) -> None:
    """A stage must not outlive its supervisor: nobody would heartbeat for it. Only Linux can promise that."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:
        os._exit(1)


def peak_host_bytes() -> int:
    """Peak resident memory of this process or its largest child, in bytes (Linux counts in KiB)."""
    return 1024 * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def peak_device_bytes() -> int | None:
    torch = sys.modules.get("torch")
    return torch.cuda.max_memory_reserved() if torch and torch.cuda.is_available() else None


def write_whole(path: Path, text: str) -> None:
    """A reader sees the whole file or none."""
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
