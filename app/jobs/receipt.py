"""What a finished job leaves beside its files: `receipt.json` says how they were made, `manifest.json` what they are."""

from typing import Any

from sqlmodel import Session

from app.artifacts import repository as artifacts
from app.files import repository as files
from app.jobs import presentation, stage_runs
from app.jobs.states import Stage
from app.models import Job, now


def build_receipt(session: Session, job: Job) -> dict[str, Any]:
    """The spec as it was resolved, where its parts came from, with which versions, and what each stage took.

    `data_plan_sha256` is of the documents as they were trained on, in their order; `sha256` of the uploaded file as it came.
    """
    values = {run.stage: (run.outputs or {})["values"] for run in stage_runs.succeeded(session, job.id, list(Stage))}
    prepared, trained = values.get(Stage.PREPARE, {}), values.get(Stage.TRAIN, {})
    runs = stage_runs.newest_by_stage(session, [job.id])[job.id]
    return {
        "object": "receipt",
        "job_id": job.id,
        "created_at": now().isoformat(),
        "spec": job.spec,
        "lineage": {
            "base_model": job.base_model,
            "revision": prepared.get("base_model", {}).get("revision"),
            "dataset": describe_data(session, job) | {"data_plan_sha256": prepared.get("plan_sha256")},
            "from_job": job.spec["from_job"],
            "from_checkpoint": job.spec["from_checkpoint"],
        },
        "versions": trained.get("versions"),
        "stages": [stage.model_dump(mode="json", exclude={"worker", "error"}) for stage in presentation.show_stages(job, runs)],
        "memory": job.memory,
        "metrics": job.metrics,
    }


def describe_data(session: Session, job: Job) -> dict[str, Any]:
    asked = job.spec["dataset"]
    file = files.find(session, asked["file"]) if asked["file"] else None
    held_out = files.find(session, asked["validation_file"]) if asked["validation_file"] else None
    return {
        "file": asked["file"],
        "sha256": file.blob_sha256 if file else None,
        "hub": asked["hub"],
        "validation_sha256": held_out.blob_sha256 if held_out else None,
    }


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
