"""A job as it goes on: its events as they come, and one line of progress that moves."""

import math
import sys
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from client import display
from client.api import ApiError, Client, Unreachable

POLL_SECONDS = 1.0
PATIENCE_SECONDS = 60.0
"""How long a service may be away, for a restart say, before following gives up. The job does not mind."""
LINE_SECONDS = 10.0
"""Between two lines of progress where nothing can move."""
ENDED = ("succeeded", "failed", "cancelled")

Look = tuple[dict[str, Any], list[dict[str, Any]]]


def watch(client: Client, job_id: str) -> Iterator[Look]:
    """The job about once a second, each time with the events that are new; the last look is at the ended job."""
    seen: str | None = None
    heard, told = time.monotonic(), False
    while True:
        try:
            job = client.job(job_id)
            events = list(client.events(job_id, after=seen))
        except (Unreachable, ApiError) as error:
            refused = isinstance(error, ApiError) and error.status < 500
            if refused or time.monotonic() - heard > PATIENCE_SECONDS:
                raise
            if not told:
                print(f"{error} Trying again for {PATIENCE_SECONDS:.0f} seconds.", file=sys.stderr)
                told = True
            time.sleep(POLL_SECONDS)
            continue
        heard, told = time.monotonic(), False
        seen = events[-1]["id"] if events else seen
        yield job, events
        if job["status"] in ENDED:
            return
        time.sleep(POLL_SECONDS)


def follow(client: Client, job_id: str, console: Console) -> dict[str, Any]:
    """Shows the job until it has ended, and returns it."""
    looks = watch(client, job_id)
    job = show_live(client, looks, console) if console.is_terminal else show_lines(client, looks, console)
    if job["status"] == "succeeded":
        display.line(
            console, f"{job_id} succeeded: `tunesmith report {job_id}` tells of it, `tunesmith download {job_id}` fetches it."
        )
    else:
        display.line(console, f"{job_id} {job['status']}.")
        display.failure(console, job)
    return job


def show_live(client: Client, looks: Iterator[Look], console: Console) -> dict[str, Any]:
    columns = (BarColumn(bar_width=30), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        for job, events in looks:
            for event in events:
                display.event(console, event)
            numbers = job["progress"] if display.is_stepping(job) else {}
            description = display.progress(job, last_loss(client, job)) or job["status"]
            bar.tasks[0].total = numbers.get("total_steps")  # `update` cannot make it unknown again
            bar.update(task, description=description, completed=numbers.get("step", 0), refresh=True)
    return job


def show_lines(client: Client, looks: Iterator[Look], console: Console) -> dict[str, Any]:
    shown, at = "", -math.inf
    for job, events in looks:
        for event in events:
            display.event(console, event)
        due = time.monotonic() - at >= LINE_SECONDS
        if due and (text := display.progress(job, last_loss(client, job))) not in ("", shown):
            display.line(console, text)
            shown, at = text, time.monotonic()
    return job


def last_loss(client: Client, job: dict[str, Any]) -> float | None:
    if not display.is_stepping(job):
        return None
    losses = [point["loss"] for point in client.metrics(job["id"], max_points=10) if point["loss"] is not None]
    return losses[-1] if losses else None
