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
from pathlib import Path

from app.jobs.spec import JobSpec
from app.jobs.states import FailureCode, Stage
from worker.stages import STAGES, Inputs, Outcome, Report, StageFailure, StageStopped

PR_SET_PDEATHSIG = 1


def main(attempt: Path, supervisor: int | None) -> None:
    if supervisor is not None:
        die_with(supervisor)
    request = json.loads((attempt / "input.json").read_text())
    inputs = Inputs.from_json(request["inputs"], secrets=json.loads(sys.stdin.read() or "{}"))
    spec = JobSpec.model_validate(request["spec"]) if request["spec"] else None
    out = attempt / "out"
    out.mkdir(exist_ok=True)
    report = Report(attempt / "events.jsonl")
    signal.signal(signal.SIGTERM, lambda *_: report.request_stop())
    try:
        stage = importlib.import_module(STAGES[Stage(request["stage"])])
        result = {"status": "succeeded", **as_json(stage.run(spec, inputs, out, report))}
    except StageStopped:
        result = {"status": "stopped"}
    except StageFailure as failure:
        traceback.print_exc()
        error = {key: getattr(failure, key) for key in ("code", "message", "hint", "param", "patch")}
        result = {"status": "failed", "error": error}
    except Exception as problem:
        traceback.print_exc()
        result = {"status": "failed", "error": describe(problem)}
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    result |= {"peak_host_bytes": peak_host_bytes(), "peak_device_bytes": peak_device_bytes()}
    write_whole(attempt / "result.json", json.dumps(result))


def as_json(outcome: Outcome) -> dict:
    return {"values": outcome.values, "files": [vars(file) for file in outcome.files]}


def describe(problem: Exception) -> dict:
    """The stored error for what no stage foresaw. The traceback is in the log, not in the answer."""
    if isinstance(problem, OSError) and problem.errno in (28, 122):  # ENOSPC, EDQUOT
        hint = "Make space on the data folder's disk, then retry the job."
        return {"code": FailureCode.DISK_FULL, "message": "The disk is full.", "hint": hint}
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
