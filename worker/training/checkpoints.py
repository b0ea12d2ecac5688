"""Checkpoints: folders that are complete or not there.

out/checkpoints/step-000120/
    manifest.json       {"version", "step", "files": {name: {"bytes", "sha256"}}, "lock"}
    ...                 what the engine wrote: adapter, optimizer, scheduler, scaler, random states, counters
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.stages import Report
from worker.training.lock import Change, Rule, compare

VERSION = 2
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    step: int
    bytes: int


class Incomplete(Exception):
    """The folder is not a whole checkpoint; says why."""


class Unfit(Exception):
    """What a whole checkpoint holds cannot be loaded into this run; says why."""


def write(folder: Path, step: int, fill: Callable[[Path], None], *, lock: dict[str, Any]) -> Checkpoint:
    """`fill` writes flat files into a folder beside the checkpoint's; on disk and described, it gets its name last."""
    part = folder / f".part-{step:06d}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    fill(part)
    files = {path.name: describe(path) for path in sorted(part.iterdir())}
    manifest = {"version": VERSION, "step": step, "files": files, "lock": lock}
    (part / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True))
    for path in (*part.iterdir(), part):
        flush(path)
    path = folder / f"step-{step:06d}"
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
    """Leaves the `keep` newest. The others lose their names first, so that whoever dies in between leaves no half of one."""
    for path in sorted(folder.glob("step-*"), key=step_of)[:-keep]:
        shutil.rmtree(path.rename(folder / f".old-{path.name}"))


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
        if manifest["step"] != step_of(path) or not isinstance(manifest["lock"], dict):
            raise Incomplete("its manifest is not its own")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise Incomplete("its files are not all there") from problem
    return manifest


def usable(earlier: list[Path], lock: dict[str, Any], report: Report) -> Iterator[Checkpoint]:
    """The checkpoints in the `out/` folders of earlier attempts that a run with this lock may go on from, the newest first.

    Each is read when it is asked for. One that is passed over, and one that is used although something differs, is reported.
    """
    candidates = [path for out in earlier for path in (out / "checkpoints").glob("step-*")]
    for path in sorted(candidates, key=step_of, reverse=True):
        try:
            manifest = read(path)
        except Incomplete as reason:
            report_skipped(report, path, "damaged", str(reason))
            continue
        refused = compare(manifest["lock"], lock, Rule.REFUSED)
        if refused:
            names = ", ".join(change.item for change in refused)
            report_skipped(report, path, "differs", f"it was made with another {names}", refused)
            continue
        degraded = compare(manifest["lock"], lock, Rule.DEGRADED)
        if degraded:
            report_degraded(report, path, degraded)
        yield Checkpoint(path, manifest["step"], sum(file["bytes"] for file in manifest["files"].values()))


def report_skipped(report: Report, path: Path, reason: str, words: str, changes: list[Change] | None = None) -> None:
    """`reason` is `damaged` (not what was written), `differs` (the lock refuses it) or `unfit` (it cannot be loaded)."""
    message = f"The checkpoint {path.name} is not used: {words}."
    facts = {"checkpoint": path.name, "reason": reason, "changes": as_json(changes or [])}
    report("warning", code="checkpoint_skipped", message=message, **facts)


def report_degraded(report: Report, path: Path, changes: list[Change]) -> None:
    words = "; ".join(f"{change.item} was {change.old} and is {change.new}" for change in changes)
    message = f"The checkpoint {path.name} is used, but the losses after it may differ in their last digits: {words}."
    report("warning", code="checkpoint_degraded", message=message, checkpoint=path.name, changes=as_json(changes))


def as_json(changes: list[Change]) -> list[dict[str, Any]]:
    return [change._asdict() for change in changes]
