"""A job's events as server-sent events. All clients of a job share one feed, which looks at the database once a second.

A feed keeps the job's events, tens of them, as they are sent, and the progress as it is now. A client that reads slowly has a
place in the list and not a queue of its own, so nothing is dropped and nothing grows.
"""

import asyncio
from bisect import bisect_right
from collections.abc import AsyncIterator
from time import monotonic
from typing import Any

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


class Feed:
    """What is known of one job while somebody follows it."""

    def __init__(self, engine: Engine, job_id: str):
        self.engine, self.job_id = engine, job_id
        self.clients = 0
        self.numbers: list[int] = []
        self.events: list[bytes] = []
        self.progress: tuple[int, bytes] | None = None
        """The latest, and how many there were."""
        self.ended = False
        self.task: asyncio.Task[None] | None = None
        self._said: dict[str, Any] | None = None
        self._changed = asyncio.Event()

    @property
    def last_number(self) -> int:
        return self.numbers[-1] if self.numbers else 0

    async def follow(self) -> None:
        try:
            while not self.ended:
                self.take(*await run_in_threadpool(look, self.engine, self.job_id, self.last_number))
                await asyncio.sleep(0 if self.ended else LOOK_SECONDS)
        finally:
            self.ended = True  # also when the database failed: clients come back with the last id that they saw
            self._wake()

    def take(self, job: Job | None, events: list[Event]) -> None:
        self.numbers += [event.number for event in events]
        self.events += [encode(event) for event in events]
        new = job is not None and job.progress is not None and job.progress != self._said
        if job is not None and new:
            self._said = job.progress
            self.progress = ((self.progress[0] if self.progress else 0) + 1, encode_progress(job))
        self.ended = job is None or (JobStatus(job.status).is_terminal and self.last_number >= job.event_count)
        if events or new or self.ended:
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self, seconds: float) -> bool:
        """Whether there was news in the meantime."""
        try:
            await asyncio.wait_for(self._changed.wait(), seconds)
        except TimeoutError:
            return False
        return True


class Feeds:
    """The feeds of one process, by job: a feed lives as long as it has clients."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self.by_job: dict[str, Feed] = {}

    def join(self, job_id: str) -> Feed:
        feed = self.by_job.get(job_id)
        if feed is None or feed.ended:
            feed = self.by_job[job_id] = Feed(self._engine, job_id)
            feed.task = asyncio.create_task(feed.follow())
        feed.clients += 1
        return feed

    def leave(self, feed: Feed) -> None:
        feed.clients -= 1
        if feed.clients == 0:
            if feed.task:
                feed.task.cancel()
            if self.by_job.get(feed.job_id) is feed:
                del self.by_job[feed.job_id]


async def stream_events(feeds: Feeds, job_id: str, after: int) -> AsyncIterator[bytes]:
    """From the event that follows number `after` to the terminal one; ends also when the job was deleted."""
    feed = feeds.join(job_id)
    progress, sent_at = 0, monotonic()
    try:
        while True:
            ended = feed.ended
            while (place := bisect_right(feed.numbers, after)) < len(feed.numbers):
                after, sent_at = feed.numbers[place], monotonic()
                yield feed.events[place]
            if ended:
                return
            if feed.progress and feed.progress[0] != progress:
                progress, sent_at = feed.progress[0], monotonic()
                yield feed.progress[1]
            elif not feed.ended and not await feed.wait(sent_at + HEARTBEAT_SECONDS - monotonic()):
                sent_at = monotonic()
                yield KEEPALIVE_COMMENT
    finally:
        feeds.leave(feed)


def look(engine: Engine, job_id: str, after: int) -> tuple[Job | None, list[Event]]:
    with read_session(engine) as session:
        return session.get(Job, job_id), repository.events(session, job_id, after=after)


def encode(event: Event) -> bytes:
    return format_sse_event(data_str=show_event(event).model_dump_json(), event=event.type, id=event.id)


def encode_progress(job: Job) -> bytes:
    """Made from the job's row and not from the list of events, so it has no id to resume from."""
    moment = StageProgress(job_id=job.id, stage=job.stage, progress=Progress.model_validate(job.progress))
    return format_sse_event(data_str=moment.model_dump_json(), event=moment.object)
