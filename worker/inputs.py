"""Builds what a stage is told: the content of its input.json, and the secrets for its stdin."""

from pathlib import Path
from typing import Any

from sqlmodel import Session, select

from app.artifacts import repository as artifacts
from app.jobs import stage_runs
from app.jobs.spec import WEBHOOK_SECRET, JobSpec, merged
from app.jobs.states import FailureCode, Stage, StageStatus
from app.jobs.tidying import is_whole
from app.models import Checkpoint, File, Job, StageRun
from app.secrets import service as secrets
from app.settings import Settings
from app.storage import Storage
from worker.settings import CONVERTER_DIR
from worker.stages import Inputs, StageFailure, StoredFile


def attempt_folder(storage: Storage, run: StageRun) -> Path:
    owner = storage.job_folder(run.job_id) if run.job_id else storage.file_folder(run.file_id or "")
    return owner / run.stage / str(run.attempt)


def build_request(session: Session, settings: Settings, storage: Storage, run: StageRun, owner: Job | File) -> dict[str, Any]:
    """Raises StageFailure when the data set is gone."""
    if isinstance(owner, File):
        asked = run.overrides or {}
        inputs = common_inputs(settings, owner.filename) | {"file": storage.blob(owner.blob_sha256), "filename": owner.filename}
        if spec := asked.get("spec"):
            inputs |= data_set(session, storage, spec) | {"row": asked.get("row")}
        return {"stage": run.stage, "spec": spec, "inputs": Inputs(**inputs).to_json()}
    spec = merged(owner.spec, run.overrides or {})
    inputs = common_inputs(settings, owner.name or owner.id)
    inputs |= data_set(session, storage, spec) | results(session, storage, run)
    if spec["from_checkpoint"] is None:
        inputs["adapter"] = find_adapter(session, storage, spec["from_job"])
    elif run.stage is Stage.PREPARE:
        inputs["adapter"] = find_checkpoint(session, storage, spec["from_checkpoint"])
    if run.stage is Stage.PUBLISH:
        inputs |= {"artifacts": stored_files(session, storage, owner), "metrics": owner.metrics or {}}
    return {"stage": run.stage, "spec": spec, "inputs": Inputs(**inputs).to_json()}


def stored_files(session: Session, storage: Storage, job: Job) -> list[StoredFile]:
    """The job's artifacts, by name."""
    return [
        StoredFile(
            name=artifact.name,
            kind=artifact.kind,
            path=storage.blob(artifact.blob_sha256),
            bytes=size,
            sha256=artifact.blob_sha256,
            verification=artifact.verification,
        )
        for artifact, size in artifacts.list_of(session, [job.id])
    ]


def load_secrets(session: Session, settings: Settings, run: StageRun, owner: Job | File) -> dict[str, str]:
    """The values of those secrets that the job's spec names, by name. StageFailure when `prepare` lacks one, or `publish` a
    token to publish with, which only these two get.

    Stages in between go on without: what they need of the hub is in the cache, and hours of training may hang on it.
    """
    overrides = run.overrides or {}
    asked = overrides.get("spec") if isinstance(owner, File) else merged(owner.spec, overrides)
    if asked is None:
        return {}
    spec = JobSpec.model_validate(asked)
    values = {}
    for param, name in spec.secrets().items():
        publishes = param.startswith("publish")
        if param == WEBHOOK_SECRET or (publishes and run.stage not in (Stage.PREPARE, Stage.PUBLISH)):
            continue
        value = secrets.read(session, settings, owner.tenant_id, name)
        if value is not None:
            values[name] = value
        elif run.stage is Stage.PREPARE or publishes or isinstance(owner, File):
            raise StageFailure(
                FailureCode.HUB_UNAUTHORIZED,
                f"The secret {name!r} was deleted after the job was submitted, or its key is gone.",
                hint=f"Store it again, with PUT /v1/secrets/{name} or `tunesmith secrets set {name}`, then retry the job.",
                param=param,
            )
    return values


def common_inputs(settings: Settings, title: str) -> dict[str, Any]:
    return {
        "cache_dir": settings.cache_dir.expanduser().resolve(),
        "models_dir": settings.models_dir.expanduser().resolve() if settings.models_dir else None,
        "converter_dir": CONVERTER_DIR,
        "title": title,
        "most_kl": settings.most_kl,
        "device_memory_bytes": settings.device_memory_bytes,
    }


def data_set(session: Session, storage: Storage, spec: dict[str, Any]) -> dict[str, Any]:
    """The uploaded files that the spec names, each with its name."""
    inputs: dict[str, Any] = {}
    for field, filename in (("file", "filename"), ("validation_file", "validation_filename")):
        if file_id := spec["dataset"].get(field):
            file = session.get(File, file_id)
            if file is None:
                raise StageFailure(
                    FailureCode.DATASET_NOT_FOUND,
                    f"The file {file_id} is no longer there.",
                    hint="Upload the data set again and submit the job with the new file's id.",
                    param=f"dataset.{field}",
                )
            inputs |= {field: storage.blob(file.blob_sha256), filename: file.filename}
    return inputs


def find_adapter(session: Session, storage: Storage, job_id: str | None) -> Path | None:
    """The folder of the adapter that a job made; it stays as long as the job does."""
    if job_id is None:
        return None
    runs = [run for run in stage_runs.attempts(session, job_id) if run.stage is Stage.TRAIN]
    made = [run for run in runs if run.status is StageStatus.SUCCEEDED]
    if not made:
        raise StageFailure(
            FailureCode.INVALID_SPEC,
            f"The job {job_id}, whose adapter this job starts from, is no longer there.",
            hint="Name another job in from_job, or none.",
            param="from_job",
            patch={"from_job": None},
        )
    return attempt_folder(storage, made[-1]) / "out" / "adapter"


def find_checkpoint(session: Session, storage: Storage, checkpoint_id: str) -> Path:
    """The folder of a checkpoint of another job."""
    found = session.exec(select(Checkpoint, StageRun).join(StageRun).where(Checkpoint.id == checkpoint_id)).first()
    folder = storage.checkpoint(found[0].job_id, found[1].attempt, found[0].step) if found else None
    if folder is None or not is_whole(folder):
        raise StageFailure(
            FailureCode.INVALID_SPEC,
            f"The checkpoint {checkpoint_id} is not on this host, or not any more.",
            hint="Choose another one: GET /v1/jobs/{id}/checkpoints tells which are `resumable`.",
            param="from_checkpoint",
        )
    return folder


def results(session: Session, storage: Storage, run: StageRun) -> dict[str, Any]:
    """What the stages before left, and what earlier attempts at this stage saved. Where nothing is trained, `prepare` leaves
    what training would have."""
    folders: dict[str, Path] = {}
    values: dict[str, dict[str, Any]] = {}
    earlier: list[Path] = []
    for other in stage_runs.attempts(session, run.job_id or ""):
        out = attempt_folder(storage, other) / "out"
        if other.stage == run.stage and other.attempt < run.attempt and out.exists():
            earlier.insert(0, out)
        elif other.status is StageStatus.SUCCEEDED and other.stage != run.stage:
            folders[Stage(other.stage).value] = out
            values[Stage(other.stage).value] = (other.outputs or {})["values"]
    if Stage.PREPARE in values and "train" in values[Stage.PREPARE]:
        folders[Stage.TRAIN.value] = folders[Stage.PREPARE]
        values[Stage.TRAIN.value] = values[Stage.PREPARE]["train"]
    return {"folders": folders, "values": values, "earlier": earlier}
