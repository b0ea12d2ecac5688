"""A job that exports a checkpoint of another one: what it takes over from there, and what it may choose."""

from collections.abc import Iterator
from typing import Any

from sqlmodel import Session, select

from app.db import read_session
from app.errors import Detail, InvalidSpec
from app.jobs import lineage
from app.jobs import repository as jobs
from app.jobs.spec import JobSpec, merged
from app.jobs.tidying import is_whole
from app.models import Checkpoint, Job, StageRun
from app.storage import Storage
from app.tenancy import sees, tenant_of

TRAINED_WITH = {
    "base_model", "revision", "method", "quantization", "lora", "training", "preference", "early_stopping", "checkpoints",
    "evaluation",
}  # fmt: skip
"""The fields that were settled when the checkpoint was made."""


def adopt(session: Session, storage: Storage, spec: JobSpec) -> JobSpec:
    """The spec with what the checkpoint was trained with, if it names one. InvalidSpec when the checkpoint is not there, or a
    field says otherwise. Looks in a session of its own: the hub may be asked before the caller's first statement."""
    if spec.from_checkpoint is None:
        return spec
    with read_session(session.get_bind().engine, tenant_of(session)) as reading:
        source = find_source(reading, storage, spec)
        before = source.spec
    given = spec.model_dump(mode="json", include=TRAINED_WITH, exclude_unset=True)
    if details := list(contradictions(given, before)):
        raise InvalidSpec.of(details)
    own = spec.model_dump(mode="json", exclude=TRAINED_WITH)
    if own["dataset"]["file"] == before["dataset"]["file"] and repo_of(own["dataset"]) == repo_of(before["dataset"]):
        own["dataset"] = merged(before["dataset"], spec.dataset.model_dump(mode="json", exclude_unset=True))
    return JobSpec.model_validate(before | own | {"from_job": source.id})


def find_source(session: Session, storage: Storage, spec: JobSpec) -> Job:
    """The job whose checkpoint it is."""
    checkpoint_id = spec.from_checkpoint
    found = session.exec(select(Checkpoint, StageRun).join(StageRun).where(Checkpoint.id == checkpoint_id)).first()
    if found is None or not sees(session, found[0]):
        message = (
            f"from_checkpoint: there is no checkpoint {checkpoint_id!r}. GET /v1/jobs/{{id}}/checkpoints lists those of a job."
        )
        raise InvalidSpec.of([Detail("from_checkpoint", message)])
    checkpoint, run = found
    if spec.from_job not in (None, checkpoint.job_id):
        message = f"from_job: {checkpoint_id} is a checkpoint of {checkpoint.job_id}, not of {spec.from_job}."
        raise InvalidSpec.of([Detail("from_job", message, patch={"from_job": checkpoint.job_id})])
    if not is_whole(storage.checkpoint(run.job_id or "", run.attempt, checkpoint.step)):
        message = (
            f"from_checkpoint: the files of {checkpoint_id} are not here any more. A job keeps its newest `checkpoints.keep`: "
            f"GET /v1/jobs/{checkpoint.job_id}/checkpoints tells which are `resumable`."
        )
        raise InvalidSpec.of([Detail("from_checkpoint", message)])
    return jobs.get(session, checkpoint.job_id)


def repo_of(dataset: dict[str, Any]) -> str | None:
    return dataset["hub"] and dataset["hub"]["repo"]


def contradictions(given: dict[str, Any], had: dict[str, Any], path: str = "") -> Iterator[Detail]:
    """What was asked for, and is not what the checkpoint was trained with. Null and `auto` agree with everything."""
    for name, value in given.items():
        param, before = f"{path}{name}", had.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            yield from contradictions(value, before, f"{param}.")
        elif value not in (None, "auto") and lineage.ordered(value) != lineage.ordered(before):
            patch: Any = before
            for part in reversed(param.split(".")):
                patch = {part: patch}
            message = f"{param}: it is {value!r}, but the checkpoint was trained with {before!r}, and nothing is trained here."
            yield Detail(param, f"{message} Leave it out.", patch=patch)
