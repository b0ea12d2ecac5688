"""/v1/jobs: submit, look, stop, send on again, remove."""

from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Body, Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError, WithJsonSchema

from app import blobs
from app.dependencies import (
    BaseUrl,
    EngineDep,
    OnceDep,
    ReadSession,
    SettingsDep,
    StorageDep,
    WriteSession,
    base_url_of,
    looking,
)
from app.jobs import repository, schemas, service
from app.jobs.presentation import present, present_all
from app.jobs.spec import JobSpec
from app.jobs.states import JobStatus
from app.pagination import MAX_LIMIT, After, Limit, Page, make_page
from app.strictness import StrictRoute

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=StrictRoute)

LABEL_QUERY = {
    "name": "label.{key}",
    "in": "query",
    "required": False,
    "schema": {"type": "string"},
    "description": "Jobs whose label `key` has this value, as in `label.team=nlp`. May be given for several keys.",
}

Overrides = Annotated[
    dict[str, Any] | None, Body(), WithJsonSchema({"anyOf": [{"$ref": "#/components/schemas/JobSpec"}, {"type": "object"}]})
]
"""Any part of a JobSpec."""


async def read_labels(request: Request) -> dict[str, str]:
    return {name.removeprefix("label."): value for name, value in request.query_params.items() if name.startswith("label.")}


def answer(shown: BaseModel, **options: Any) -> Response:
    """What FastAPI would send, for what is asked often: it would check the model once more and write it in a second thread."""
    return Response(shown.model_dump_json(), media_type="application/json", **options)


@router.post("", status_code=201, response_model=schemas.Job)
def create_job(spec: JobSpec, session: WriteSession, settings: SettingsDep, base_url: BaseUrl, once: OnceDep) -> Response:
    """Checks the whole spec and queues the job. 422 names every field that is wrong, and nothing is queued."""
    job_id = once.run(session, spec.model_dump_json(), lambda: service.create(session, settings, spec).id)
    job = repository.get(session, job_id)
    return answer(present(session, job, base_url), status_code=201, headers={"location": f"{base_url}/v1/jobs/{job.id}"})


@router.get("", response_model=Page[schemas.Job], openapi_extra={"parameters": [LABEL_QUERY]})
def list_jobs(
    session: ReadSession,
    base_url: BaseUrl,
    labels: Annotated[dict[str, str], Depends(read_labels)],
    limit: Limit = 20,
    after: After = None,
    status: JobStatus | None = None,
    base_model: str | None = None,
) -> Response:
    """Newest first."""
    limit = min(limit, MAX_LIMIT)
    jobs = repository.page(session, limit=limit, after=after, status=status, base_model=base_model, labels=labels)
    return answer(make_page(present_all(session, jobs, base_url), limit))


@router.get("/{job_id}", response_model=schemas.Job)
def get_job(job_id: str, request: Request) -> Response:
    with looking(request) as session:
        return answer(present(session, repository.look(session, job_id), base_url_of(request)))


@router.post("/{job_id}/cancel", status_code=202)
def cancel_job(job_id: str, session: WriteSession, base_url: BaseUrl) -> schemas.Job:
    """A waiting job ends at once, a running one within seconds; what it made so far stays. 409 when it has ended."""
    return present(session, service.cancel(session, job_id), base_url)


@router.delete("/{job_id}")
def delete_job(
    job_id: str, session: WriteSession, engine: EngineDep, storage: StorageDep, background: BackgroundTasks
) -> schemas.DeletedJob:
    """Removes the job and all that it made. 409 while it runs."""
    hashes = service.delete(session, job_id)
    background.add_task(service.remove_content, engine, storage, job_id, hashes)
    return schemas.DeletedJob(id=job_id)


@router.post("/estimate")
def estimate_job() -> None:
    """Not available in this version."""
    raise service.not_available("Estimating a job")


@router.post("/{job_id}/pause", status_code=202)
def pause_job(job_id: str, session: WriteSession, base_url: BaseUrl) -> schemas.Job:
    """The stage finishes its step, saves and leaves its worker; a waiting job is paused at once. 409 when it has ended."""
    return present(session, service.pause(session, job_id), base_url)


@router.post("/{job_id}/resume", status_code=202)
def resume_job(job_id: str, session: WriteSession, base_url: BaseUrl) -> schemas.Job:
    """Queues a paused job again: it goes on where it stopped. 409 when it is not paused."""
    return present(session, service.resume(session, job_id), base_url)


@router.post("/{job_id}/retry", status_code=202)
def retry_job(
    job_id: str,
    looking: ReadSession,
    session: WriteSession,
    settings: SettingsDep,
    base_url: BaseUrl,
    engine: EngineDep,
    storage: StorageDep,
    background: BackgroundTasks,
    overrides: Overrides = None,
) -> schemas.Job:
    """Queues a failed or cancelled job again, from the stage that did not succeed, or from an earlier one that the overrides
    change: the answer's `stage` says which. The body may hold any part of the spec, as the `patch` of the job's error does."""
    overrides = overrides or {}
    try:
        spec = service.plan_retry(looking, settings, job_id, overrides)
    except ValidationError as error:
        raise RequestValidationError([problem | {"loc": ("body", *problem["loc"])} for problem in error.errors()]) from error
    job, hashes = service.retry(session, job_id, spec, overrides)
    background.add_task(blobs.remove_dropped, engine, storage, hashes)
    return present(session, job, base_url)
