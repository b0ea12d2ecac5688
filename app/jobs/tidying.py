"""What stays of the attempts at a job's stages, and what goes.

    log.txt                                 stays, whatever became of the attempt
    events.jsonl                            stays until the job has ended: its worker may have died before it stored the last
    out/ of a stage's newest success        stays until the job has succeeded: a retry goes on from it
    out/adapter of the training             stays for good: it is what the job made, exported or not
    out/checkpoints/step-…                  the newest `checkpoints.keep` whole ones over all attempts

All else of an attempt that has ended goes. What waits or runs is never touched.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from sqlmodel import Session

from app.jobs import stage_runs
from app.jobs.states import JobStatus, Stage, StageStatus
from app.models import File, Job, StageRun
from app.storage import CHECKPOINTS, EVENTS, LOG, Storage, discard_partial, keep_only, remove

LIVE = (StageStatus.QUEUED, StageStatus.RUNNING)


def tidy(session: Session, storage: Storage, owner: Job | File) -> None:
    """May be called at any time, by anyone, and again. The session only reads."""
    if isinstance(owner, File):
        for run in stage_runs.inspections(session, owner.id):
            if run.status not in LIVE:
                discard_partial(storage.file_folder(owner.id) / run.stage / str(run.attempt))
        return
    runs = stage_runs.attempts(session, owner.id)
    finished = {run.stage: run.id for run in runs if run.status is StageStatus.SUCCEEDED}
    drop_checkpoints(storage, owner, [run for run in runs if run.stage is Stage.TRAIN])
    for run in runs:
        if run.status not in LIVE:
            folder = storage.attempt_folder(owner.id, run.stage, run.attempt)
            keep_only(folder, kept_of(run, owner, is_newest_success=finished.get(run.stage) == run.id))


def kept_of(run: StageRun, job: Job, *, is_newest_success: bool) -> set[str]:
    """Patterns of paths below the attempt's folder."""
    kept = {LOG} if JobStatus(job.status).is_terminal else {LOG, EVENTS}
    if is_newest_success and job.status is not JobStatus.SUCCEEDED:
        kept.add("out")
    elif run.stage is Stage.TRAIN:
        kept.add(CHECKPOINTS)
        if is_newest_success:
            kept.add("out/adapter")
    return kept


def drop_checkpoints(storage: Storage, job: Job, runs: list[StageRun]) -> None:
    """Of ended attempts, those that newer whole ones have made needless. A damaged one does not count."""
    keep, whole = job.spec["checkpoints"]["keep"], 0
    for run in reversed(runs):
        for path in newest_first(storage.attempt_folder(job.id, run.stage, run.attempt) / "out" / "checkpoints"):
            if whole >= keep and run.status not in LIVE:
                remove(path)
            elif is_whole(path):
                whole += 1


def newest_first(folder: Path) -> Iterator[Path]:
    return iter(sorted(folder.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")), reverse=True))


def is_whole(checkpoint: Path) -> bool:
    """Whether all files of a checkpoint are there in their sizes. Their hashes are looked at before one is resumed from."""
    try:
        files = json.loads((checkpoint / "manifest.json").read_text())["files"]
        return all((checkpoint / name).stat().st_size == facts["bytes"] for name, facts in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
