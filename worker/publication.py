"""Makes what a stage produced part of its job: artifacts, facts for later stages, and the next stage's turn.

Called inside the transaction that ends the run, so that all of it happens or none.
"""

import json
from pathlib import Path
from typing import Any

from sqlmodel import Session, select

from app import blobs
from app.jobs import recovery, stage_runs
from app.jobs import repository as jobs
from app.jobs.keys import stage_keys
from app.jobs.receipt import build_manifest, build_receipt
from app.jobs.results import write_results
from app.jobs.spec import plan
from app.jobs.states import HELD, EventType, JobStatus, Stage
from app.models import Artifact, File, Job, StageRun, now
from app.storage import Storage


def publish_inspection(session: Session, file: File, values: dict[str, Any]) -> None:
    file.report, file.status, file.status_details = values["report"], "processed", None
    session.add(file)


def publish_stage(session: Session, storage: Storage, job: Job, run: StageRun, out: Path) -> None:
    """The run has just been finished and holds its outputs. What is to be verified is held back until it is."""
    keys = stage_keys(job.spec)
    run.key = keys[run.stage]
    session.add(run)
    outputs = run.outputs or {}
    if run.stage is Stage.VERIFY:
        publish_verified(session, storage, job, outputs["values"]["verification"])
    if run.stage not in HELD or Stage.VERIFY not in keys:
        for file in outputs["files"]:
            publish_file(session, storage, job, out, file, None)
    seconds = (run.finished_at - run.started_at).total_seconds() if run.finished_at and run.started_at else None
    data = {"stage": run.stage, "attempt": run.attempt, "duration_seconds": seconds}
    jobs.record_event(session, job, EventType.STAGE_FINISHED, f"Stage {run.stage} finished.", data)
    job.progress = (job.progress or {}) | {"message": None}
    session.add(job)
    go_on(session, storage, job, run)


def go_on(session: Session, storage: Storage, job: Job, run: StageRun) -> None:
    """What was finished although the job was to be cancelled stays, and no other stage starts."""
    stages = plan(job.spec)
    rest = stages[stages.index(run.stage) + 1 :]
    if rest:
        job.stage = rest[0]
    elif not job.cancel_requested_at:
        write_results(session, storage, job)
        publish_records(session, storage, job)
        jobs.set_status(session, job, JobStatus.SUCCEEDED, "The job succeeded.")
        return
    if not recovery.heed(session, job):
        before = stage_runs.last_attempt(session, job.id, rest[0])
        stage_runs.enqueue(session, job=job, stage=rest[0], attempt=before.attempt + 1 if before else 1)


def publish_verified(session: Session, storage: Storage, job: Job, verification: dict[str, dict[str, Any]]) -> None:
    """What earlier stages made and is right: with what was found of it, by artifact name."""
    for run in stage_runs.succeeded(session, job.id, HELD):
        out = storage.attempt_folder(job.id, run.stage, run.attempt) / "out"
        for file in (run.outputs or {})["files"]:
            if is_right(file, verification):
                publish_file(session, storage, job, out, file, verification.get(file["name"]))


def is_right(file: dict[str, Any], verification: dict[str, dict[str, Any]]) -> bool:
    """A merged model is one thing of many files: none of them is if one is not."""
    merged = [name for name in verification if name.startswith("merged/")] if file["kind"] == "merged" else []
    return all(verification[name]["passed"] for name in [*merged, file["name"]] if name in verification)


def publish_right(session: Session, storage: Storage, job: Job, run: StageRun, out: Path) -> None:
    """Of a job that fails because not all of its files are right: those that are. They were paid for."""
    outputs = run.outputs or {}
    publish_verified(session, storage, job, outputs["values"]["verification"])
    for file in outputs["files"]:
        publish_file(session, storage, job, out, file, None)


def publish_file(
    session: Session, storage: Storage, job: Job, out: Path, file: dict[str, Any], verification: dict[str, Any] | None
) -> None:
    """Links a finished file into storage. A file by that name from an earlier run of the stage is replaced."""
    source = (out / file["path"]).resolve()
    if not source.is_relative_to(out.resolve()) or source.stat().st_size != file["bytes"]:
        raise ValueError(f"the stage's output {file['name']} is not the file that the stage described")
    blobs.keep(session, file["sha256"], file["bytes"])
    storage.ingest(source, file["sha256"])
    name_artifact(session, job, file, verification)


def publish_records(session: Session, storage: Storage, job: Job) -> None:
    """`receipt.json`, and last `manifest.json`, which names all the others."""
    for name, build in {"receipt": build_receipt, "manifest": build_manifest}.items():
        content = json.dumps(build(session, job), ensure_ascii=False, indent=2).encode() + b"\n"
        sha256 = blobs.keep_content(session, storage, content)
        file = {"name": f"{name}.json", "kind": name, "bytes": len(content), "sha256": sha256}
        name_artifact(session, job, file, None)


def name_artifact(session: Session, job: Job, file: dict[str, Any], verification: dict[str, Any] | None) -> None:
    found = session.exec(select(Artifact).where(Artifact.job_id == job.id, Artifact.name == file["name"])).first()
    artifact = found or Artifact(tenant_id=job.tenant_id, job_id=job.id, name=file["name"], kind="", blob_sha256="")
    artifact.kind, artifact.blob_sha256 = file["kind"], file["sha256"]
    artifact.verification, artifact.created_at = verification, now()
    session.add(artifact)
    data = {"id": artifact.id, **{key: file[key] for key in ("name", "kind", "bytes", "sha256")}}
    jobs.record_event(session, job, EventType.JOB_ARTIFACT, f"Artifact {file['name']} is ready.", data)
