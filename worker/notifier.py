"""Sends the webhooks that are due: several at a time, so that a slow receiver holds up nobody else.

The transactions are short and none is open while something is sent. A lease is extended while its delivery is under way; what a
killed worker was sending is sent again when the lease has run out.
"""

import logging
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from sqlmodel import Session

from app.db import write_session
from app.webhooks import delivery
from app.webhooks.delivery import Parcel
from app.webhooks.sender import Attempt
from worker.runner import Runner, insist

log = logging.getLogger(__name__)

AT_A_TIME = 8
LOOK_SECONDS = 0.5
"""While something is being sent, how long what becomes due may wait for a free place."""

UnderWay = dict[Future[Attempt], Parcel]


def notify(runner: Runner) -> None:
    """Until nothing is due or the worker has to leave, which waits for what is under way."""
    under_way: UnderWay = {}
    with ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="webhook") as pool:
        while True:
            while not runner.stop.times and len(under_way) < AT_A_TIME and (parcel := claim(runner)):
                under_way[pool.submit(parcel.send, runner.settings)] = parcel
            if not under_way:
                return
            wait(under_way, min(LOOK_SECONDS, runner.settings.lease_seconds / 4), FIRST_COMPLETED)
            note(runner, under_way)


def claim(runner: Runner) -> Parcel | None:
    with write_session(runner.engine) as session:
        return delivery.claim(session, runner.settings)


def note(runner: Runner, under_way: UnderWay) -> None:
    """Settles what has been answered, and keeps the rest."""
    answered = [future for future in under_way if future.done()]

    def write(session: Session) -> None:
        for future, parcel in under_way.items():
            if future in answered:
                delivery.settle(session, parcel, future.result())
            else:
                delivery.extend(session, parcel, runner.settings.lease_seconds)

    insist(runner, write)
    for future in answered:
        row, attempt = under_way.pop(future).delivery, future.result()
        log.info("%s of %s to %s: %s", row.id, row.event_type, row.host, attempt.status_code or attempt.error)
