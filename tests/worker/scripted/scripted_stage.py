"""A stage under the real contract whose body is the script that a test left in the models folder."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from app.jobs.states import FailureCode
from worker.stages import Inputs, Outcome, OutputFile, StageFailure, StageStopped


def run(spec, inputs: Inputs, out: Path, report) -> Outcome:
    names = {
        "FailureCode": FailureCode,
        "OutputFile": OutputFile,
        "StageFailure": StageFailure,
        "StageStopped": StageStopped,
        "attempt": int(out.parent.name),
        "inputs": inputs,
        "json": json,
        "os": os,
        "out": out,
        "report": report,
        "signal": signal,
        "spec": spec,
        "stage": out.parent.parent.name,
        "subprocess": subprocess,
        "sys": sys,
        "time": time,
        "values": {},
        "files": [],
    }
    exec((inputs.models_dir / "script.py").read_text(), names)
    return Outcome(values=names["values"], files=names["files"])
