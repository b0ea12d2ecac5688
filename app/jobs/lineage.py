"""A job that goes on training another one's adapter: whether it can, and which jobs still need what another one trained."""

from typing import Any

from sqlmodel import Session, col, select

from app.artifacts import repository as artifacts
from app.errors import Detail
from app.jobs import repository as jobs
from app.jobs.spec import JobSpec
from app.jobs.states import TERMINAL, JobStatus
from app.models import Job

SHAPE = ("r", "alpha", "variant", "target_modules", "modules_to_save")
"""The settings of an adapter that decide which tensors it has and what they mean."""


def check_source(session: Session, spec: JobSpec) -> list[Detail]:
    """What is wrong with `from_job`: the adapter must be there, and fit the same base model."""
    if spec.from_job is None or spec.from_checkpoint:
        return []
    source = jobs.find(session, spec.from_job)
    if source is None:
        return [Detail("from_job", f"from_job: there is no job {spec.from_job!r}. GET /v1/jobs lists the jobs.")]
    if source.status is not JobStatus.SUCCEEDED:
        return [Detail("from_job", f"from_job: {source.id} is {source.status}; only a job that succeeded has an adapter.")]
    if origin := source.spec["from_job"] if source.spec["from_checkpoint"] else None:
        message = f"from_job: {source.id} has trained nothing, it exported a checkpoint of {origin}."
        return [Detail("from_job", message, patch={"from_job": origin})]
    if not artifacts.find_owners(session, [source.id]):
        return [Detail("from_job", f"from_job: the model of {source.id} was deleted, and its adapter with it.")]
    before = JobSpec.model_validate(source.spec)
    details = []
    if spec.base_model != before.base_model:
        details.append(differs("base_model", spec.base_model, before.base_model, {"base_model": before.base_model}))
    elif spec.revision not in (None, before.revision):
        details.append(differs("revision", spec.revision, before.revision, {"revision": before.revision}))
    for name in SHAPE:
        asked, had = getattr(spec.lora, name), getattr(before.lora, name)
        if ordered(asked) != ordered(had):
            details.append(differs(f"lora.{name}", asked, had, {"lora": {name: had}}))
    return details


def ordered(value: Any) -> Any:
    return sorted(value) if isinstance(value, list) else value


def differs(param: str, asked: Any, had: Any, patch: dict[str, Any]) -> Detail:
    return Detail(param, f"{param}: it is {asked!r}, but the adapter of from_job was made with {had!r}.", patch=patch)


def inherit(session: Session, spec: JobSpec) -> JobSpec:
    """The spec with the revision of the base model that the earlier job trained on."""
    if spec.from_job is None or spec.from_checkpoint:
        return spec
    return spec.model_copy(update={"revision": session.get_one(Job, spec.from_job).spec["revision"]})


def find_successor(session: Session, job_id: str) -> str | None:
    """The id of a job that has not ended and starts from this one's adapter, or from a checkpoint of it."""
    statement = select(Job.id).where(col(Job.status).not_in(TERMINAL), col(Job.spec)["from_job"].as_string() == job_id)
    return session.exec(statement.limit(1)).first()
