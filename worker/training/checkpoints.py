"""Checkpoints: folders that are complete or not there.

out/checkpoints/step-000120/
    manifest.json       {"version", "step", "files": {name: {"bytes", "sha256"}}, "identity", "environment"}
    ...                 what the engine wrote: adapter, optimizer, scheduler, scaler, random states, counters
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.stages import Report

VERSION = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    step: int
    bytes: int


class Incomplete(Exception):
    """The folder is not a whole checkpoint; says why."""


def write(folder: Path, step: int, fill: Callable[[Path], None], *, identity: dict, environment: dict) -> Checkpoint:
    """`fill` writes flat files into a folder beside the checkpoint's; on disk and described, it gets its name last."""
    part = folder / f".part-{step:06d}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    fill(part)
    files = {path.name: describe(path) for path in sorted(part.iterdir())}
    manifest = {"version": VERSION, "step": step, "files": files, "identity": identity, "environment": environment}
    (part / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True))
    for path in (*part.iterdir(), part):
        flush(path)
    path = folder / f"step-{step:06d}"
    shutil.rmtree(path, ignore_errors=True)
    part.rename(path)
    flush(folder)
    return Checkpoint(path, step, sum(file["bytes"] for file in files.values()))


def describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def prune(folder: Path, keep: int) -> None:
    """Leaves the `keep` newest."""
    for path in sorted(folder.glob("step-*"), key=step_of)[:-keep]:
        shutil.rmtree(path)


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def read(path: Path) -> dict[str, Any]:
    """The manifest of a whole checkpoint. Incomplete when a file is missing, short or different."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        if manifest["version"] != VERSION:
            raise Incomplete(f"its version is {manifest['version']}")
        for name, facts in manifest["files"].items():
            if describe(path / name) != facts:
                raise Incomplete(f"{name} is not what was written")
    except (OSError, ValueError, KeyError) as problem:
        raise Incomplete("its files are not all there") from problem
    return manifest


def newest(earlier: list[Path], identity: dict[str, Any], report: Report) -> Checkpoint | None:
    """The checkpoint with the highest step among the `out/` folders of earlier attempts that this run can go on from.

    A damaged one, and one of a run with other data or settings, is passed over with a warning.
    """
    candidates = [path for out in earlier for path in (out / "checkpoints").glob("step-*")]
    for path in sorted(candidates, key=step_of, reverse=True):
        try:
            manifest = read(path)
        except Incomplete as reason:
            warn(report, path, str(reason))
            continue
        changed = [key for key, value in identity.items() if manifest["identity"].get(key) != value]
        if changed:
            warn(report, path, f"it was made with another {', '.join(changed)}")
            continue
        return Checkpoint(path, manifest["step"], sum(file["bytes"] for file in manifest["files"].values()))
    return None


def warn(report: Report, path: Path, reason: str) -> None:
    report("warning", code="checkpoint_skipped", message=f"The checkpoint {path.name} is not used: {reason}.")
