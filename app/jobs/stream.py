"""A job's events as server-sent events. Each client looks once a second; a look is two reads by key."""

from collections.abc import AsyncIterator
from time import monotonic
from typing import Any

import anyio
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from sqlalchemy import Engine
from starlette.concurrency import run_in_threadpool

from app.db import read_session
from app.jobs import repository
from app.jobs.presentation import show_event
from app.jobs.schemas import Progress, StageProgress
from app.jobs.states import JobStatus
from app.models import Event, Job

LOOK_SECONDS = 1.0
HEARTBEAT_SECONDS = 15.0


def look(engine: Engine, job_id: str, after: int) -> tuple[Job | None, list[Event]]:
    with read_session(engine) as session:
        return session.get(Job, job_id), repository.events(session, job_id, after=after)


async def stream_events(engine: Engine, job_id: str, after: int) -> AsyncIterator[bytes]:
    """From the event that follows number `after` to the terminal one; ends also when the job was deleted."""
    progress: dict[str, Any] | None = None
    sent_at = monotonic()
    while True:
        job, events = await run_in_threadpool(look, engine, job_id, after)
        for event in events:
            after, sent_at = event.number, monotonic()
            yield encode(event)
        if job is None or (JobStatus(job.status).is_terminal and after >= job.event_count):
            return
        if job.progress is not None and job.progress != progress:
            progress, sent_at = job.progress, monotonic()
            yield encode_progress(job)
        if monotonic() - sent_at >= HEARTBEAT_SECONDS:
            sent_at = monotonic()
            yield KEEPALIVE_COMMENT
        await anyio.sleep(LOOK_SECONDS)


def encode(event: Event) -> bytes:
    return format_sse_event(data_str=show_event(event).model_dump_json(), event=event.type, id=event.id)


def encode_progress(job: Job) -> bytes:
    """Made from the job's row and not from the list of events, so it has no id to resume from."""
    moment = StageProgress(job_id=job.id, stage=job.stage, progress=Progress.model_validate(job.progress))
    return format_sse_event(data_str=moment.model_dump_json(), event=moment.object)
