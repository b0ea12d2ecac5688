"""/v1/fine_tuning/jobs: the jobs of /v1/jobs in OpenAI's form, for clients that already speak it."""

import re
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request

from app.dependencies import OnceDep, ReadSession, SettingsDep, WriteSession
from app.errors import InvalidSpec
from app.jobs import repository, service
from app.models import Job
from app.openai import presentation, schemas
from app.openai.request import FineTuningRequest, in_their_names, to_spec
from app.pagination import MAX_LIMIT, After, Limit, Page, make_page
from app.strictness import OpenAIRoute

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["openai"], route_class=OpenAIRoute)

METADATA_QUERY = {
    "name": "metadata[{key}]",
    "in": "query",
    "required": False,
    "schema": {"type": "string"},
    "description": "Jobs whose metadata has this value under `key`. May be given for several keys.",
}


async def read_metadata(request: Request) -> dict[str, str]:
    found = ((re.fullmatch(r"metadata\[(.*)\]", name, re.DOTALL), value) for name, value in request.query_params.items())
    return {match[1]: value for match, value in found if match}


def show(session: ReadSession, job: Job) -> schemas.FineTuningJob:
    return presentation.present_all(session, [job])[0]


@router.post("")
def create_fine_tuning_job(
    body: FineTuningRequest, session: WriteSession, settings: SettingsDep, once: OnceDep
) -> schemas.FineTuningJob:
    """Queues the job. Beside OpenAI's fields the body takes those of a JobSpec, as `extra_body` of OpenAI's SDK sends them."""
    spec = to_spec(body)
    try:
        job_id = once.run(session, body.model_dump_json(), lambda: service.create(session, settings, spec).id)
    except InvalidSpec as error:
        raise in_their_names(error) from error
    return show(session, repository.get(session, job_id))


@router.get("", openapi_extra={"parameters": [METADATA_QUERY]})
def list_fine_tuning_jobs(
    session: ReadSession,
    labels: Annotated[dict[str, str], Depends(read_metadata)],
    limit: Limit = 20,
    after: After = None,
    metadata: Annotated[Literal["null"] | None, Query(description="Jobs without any metadata.")] = None,
) -> Page[schemas.FineTuningJob]:
    """Newest first."""
    limit = min(limit, MAX_LIMIT)
    jobs = repository.page(session, limit=limit, after=after, labels=labels, unlabelled=metadata is not None)
    return make_page(presentation.present_all(session, jobs), limit)


@router.get("/{job_id}")
def get_fine_tuning_job(job_id: str, session: ReadSession) -> schemas.FineTuningJob:
    return show(session, repository.get(session, job_id))


@router.post("/{job_id}/cancel")
def cancel_fine_tuning_job(job_id: str, session: WriteSession) -> schemas.FineTuningJob:
    """409 when the job has ended."""
    return show(session, service.cancel(session, job_id))


@router.post("/{job_id}/pause")
def pause_fine_tuning_job(job_id: str, session: WriteSession) -> schemas.FineTuningJob:
    """409 when the job has ended."""
    return show(session, service.pause(session, job_id))


@router.post("/{job_id}/resume")
def resume_fine_tuning_job(job_id: str, session: WriteSession) -> schemas.FineTuningJob:
    """409 when the job is not paused."""
    return show(session, service.resume(session, job_id))


@router.get("/{job_id}/events")
def list_fine_tuning_events(
    job_id: str, session: ReadSession, limit: Limit = 20, after: After = None
) -> Page[schemas.FineTuningEvent]:
    """Newest first, as OpenAI lists them."""
    repository.get(session, job_id)
    before = repository.find_event_number(session, job_id, after) if after else None
    if after and before is None:
        raise InvalidSpec(f"{job_id} has no event {after!r}.", param="after")
    limit = min(limit, MAX_LIMIT)
    events = repository.newest_events(session, job_id, before=before, limit=limit)
    return make_page([presentation.show_event(event) for event in events], limit)


@router.get("/{job_id}/checkpoints")
def list_fine_tuning_checkpoints(
    job_id: str, session: ReadSession, limit: Limit = 10, after: After = None
) -> Page[schemas.FineTuningCheckpoint]:
    """Newest first. Their files are not offered; GET /v1/jobs/{job_id}/checkpoints says which can be resumed from."""
    job = repository.get(session, job_id)
    limit = min(limit, MAX_LIMIT)
    rows = repository.newest_checkpoints(session, job_id, before=after, limit=limit)
    return make_page([presentation.show_checkpoint(job, row) for row in rows], limit)
