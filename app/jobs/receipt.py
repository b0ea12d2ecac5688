"""What a finished job leaves beside its files: `receipt.json` says how they were made, `manifest.json` what they are."""

from importlib.metadata import version
from typing import Any

from sqlmodel import Session

from app.artifacts import repository as artifacts
from app.files import repository as files
from app.jobs import presentation, stage_runs
from app.jobs.spec import plan
from app.jobs.states import Stage
from app.models import Job, now


def build_receipt(session: Session, job: Job) -> dict[str, Any]:
    """The spec as it was resolved, where its parts came from, with which versions, and what each stage took.

    Of a job that exports a checkpoint, `lineage` and `versions` are of the job that trained it.
    """
    trainer = session.get_one(Job, job.spec["from_job"]) if job.spec["from_checkpoint"] else job
    made, trained = read_values(session, job), read_values(session, trainer)
    versions = [values.get("versions") or {} for values in (trained.get(Stage.TRAIN, {}), made.get(Stage.CONVERT, {}))]
    runs = stage_runs.newest_by_stage(session, [job.id])[job.id]
    return {
        "object": "receipt",
        "job_id": job.id,
        "created_at": now().isoformat(),
        "spec": job.spec,
        "lineage": describe_origin(session, trainer, trained)
        | {key: job.spec[key] for key in ("from_job", "from_checkpoint")}
        | {"from_adapter_sha256": hash_of_earlier(made)},
        "versions": {"tunesmith": version("tunesmith")} | versions[0] | versions[1],
        "stages": [stage.model_dump(mode="json", exclude={"worker", "error"}) for stage in presentation.show_stages(job, runs)],
        "memory": job.memory,
        "metrics": job.metrics,
    }


def read_values(session: Session, job: Job) -> dict[Stage, dict[str, Any]]:
    """What each stage that has succeeded told."""
    stages = plan(job.spec)
    return {run.stage: (run.outputs or {})["values"] for run in stage_runs.succeeded(session, job.id, stages)}


def describe_origin(session: Session, job: Job, values: dict[Stage, dict[str, Any]]) -> dict[str, Any]:
    """What the job trained on. `data_plan_sha256` is of the documents as they were trained on, in their order; `sha256` of the
    uploaded file as it came."""
    prepared = values.get(Stage.PREPARE, {})
    asked = job.spec["dataset"]
    file = files.find(session, asked["file"]) if asked["file"] else None
    held_out = files.find(session, asked["validation_file"]) if asked["validation_file"] else None
    return {
        "base_model": job.base_model,
        "revision": prepared.get("base_model", {}).get("revision"),
        "dataset": {
            "file": asked["file"],
            "sha256": file.blob_sha256 if file else None,
            "hub": asked["hub"],
            "validation_sha256": held_out.blob_sha256 if held_out else None,
            "data_plan_sha256": prepared.get("plan_sha256"),
        },
    }


def hash_of_earlier(values: dict[Stage, dict[str, Any]]) -> str | None:
    """Of the weights of the adapter that training went on from, or that was exported; None of a job that began with none."""
    source = values.get(Stage.TRAIN, {}).get("from_job") or values[Stage.PREPARE].get("train", {}).get("from_checkpoint")
    return source["adapter_sha256"] if source else None


def build_manifest(session: Session, job: Job) -> dict[str, Any]:
    """Every artifact but the manifest itself."""
    listed = artifacts.list_of(session, [job.id])
    return {
        "object": "manifest",
        "job_id": job.id,
        "files": [
            {
                "name": row.name,
                "kind": row.kind,
                "bytes": size,
                "sha256": row.blob_sha256,
                "verified": row.verification["passed"] if row.verification else None,
            }
            for row, size in listed
        ],
    }
