"""What a job has done so far: events, metrics, logs, checkpoints, attempts, and the report."""

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from fastapi.sse import EventSourceResponse

from app.dependencies import BaseUrl, ReadSession, StorageDep
from app.errors import InvalidSpec
from app.jobs import metrics, report, repository, schemas, stage_runs
from app.jobs.logs import last_lines, read_logs
from app.jobs.presentation import load_checkpoints, load_points, load_report, show_attempt, show_event
from app.jobs.states import Stage
from app.jobs.stream import Feeds, stream_events
from app.pagination import MAX_LIMIT, After, Limit, Page, make_page
from app.strictness import StrictRoute

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["jobs"], route_class=StrictRoute)

STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


async def get_feeds(request: Request) -> Feeds:
    return request.app.state.feeds


@router.get("/events", response_model=Page[schemas.Event], responses={200: {"content": {"text/event-stream": {}}}})
def list_events(
    job_id: str,
    session: ReadSession,
    feeds: Annotated[Feeds, Depends(get_feeds)],
    limit: Limit = 20,
    after: After = None,
    stream: bool = False,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Page[schemas.Event] | EventSourceResponse:
    """Oldest first. With `stream=true` server-sent events: those there are, then those that come, up to the terminal one."""
    repository.get(session, job_id)
    seen = (last_event_id if stream else None) or after
    number = repository.find_event_number(session, job_id, seen) if seen else 0
    if number is None:
        raise InvalidSpec(f"{job_id} has no event {seen!r}.", param="Last-Event-ID" if seen == last_event_id else "after")
    if stream:
        return EventSourceResponse(stream_events(feeds, job_id, number), headers=STREAM_HEADERS)
    limit = min(limit, MAX_LIMIT)
    events = repository.events(session, job_id, after=number, limit=limit)
    return make_page([show_event(event) for event in events], limit)


@router.get("/metrics")
def list_metrics(
    job_id: str, session: ReadSession, max_points: Annotated[int | None, Query(ge=1)] = None
) -> Page[schemas.MetricPoint]:
    """The whole list by step, or at most `max_points` of it, evenly spaced."""
    repository.get(session, job_id)
    points = load_points(session, job_id)
    return make_page(points if max_points is None else metrics.thin(points, max_points))


@router.get("/logs", response_class=PlainTextResponse)
def get_logs(
    job_id: str,
    session: ReadSession,
    storage: StorageDep,
    stage: Stage | None = None,
    tail: Annotated[int | None, Query(ge=1, le=1_000_000, description="Only the last lines, so many.")] = None,
) -> StreamingResponse:
    """What the processes of all stages printed, attempt after attempt; `stage` asks for one stage's."""
    repository.get(session, job_id)
    runs = [run for run in stage_runs.attempts(session, job_id) if stage in (None, run.stage)]
    lines = read_logs(storage, job_id, runs)
    return StreamingResponse(lines if tail is None else last_lines(lines, tail), media_type="text/plain; charset=utf-8")


@router.get("/checkpoints")
def list_checkpoints(job_id: str, session: ReadSession, storage: StorageDep) -> Page[schemas.Checkpoint]:
    """The whole list by step."""
    repository.get(session, job_id)
    return make_page(load_checkpoints(session, storage, job_id))


@router.get("/attempts")
def list_attempts(job_id: str, session: ReadSession) -> Page[schemas.StageAttempt]:
    """Every attempt at every stage, oldest first."""
    repository.get(session, job_id)
    return make_page([show_attempt(run) for run in stage_runs.attempts(session, job_id)])


@router.get("/report", response_class=Response, responses={200: {"content": {"text/markdown": {}, "application/json": {}}}})
def get_report(job_id: str, request: Request, session: ReadSession, storage: StorageDep, base_url: BaseUrl) -> Response:
    """The experiment report as Markdown, or its data with `Accept: application/json`. It grows while the job runs."""
    built = load_report(session, storage, repository.get(session, job_id), base_url)
    headers = {"vary": "accept"}
    if "application/json" in request.headers.get("accept", ""):
        return JSONResponse(built, headers=headers)
    return Response(report.render(built), media_type="text/markdown; charset=utf-8", headers=headers)
