"""The doorbell. A message says only "look at this queue"; what there is to do stands in the database.

`ring` is called inside a session and the message leaves after its commit; a rollback drops it. A message that is lost
costs nothing but time: the reaper rings again for what waits.
"""

import logging
from functools import cache

from celery import Celery
from kombu.exceptions import OperationalError
from sqlalchemy import event
from sqlalchemy.orm import Session as OrmSession
from sqlmodel import Session

from app.settings import Settings

log = logging.getLogger(__name__)

LOOK = "tunesmith.look"
QUEUES = ("gpu", "cpu", "notify")


@cache
def make_queue(broker_url: str) -> Celery:
    celery = Celery("tunesmith", broker=broker_url)
    celery.conf.update(
        task_ignore_result=True,
        task_acks_late=False,
        task_default_queue="cpu",
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_concurrency=1,
        worker_pool="solo",
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        broker_connection_retry_on_startup=True,
        broker_transport_options={"socket_connect_timeout": 2, "socket_keepalive": True, "max_retries": 1, "interval_start": 0},
    )
    return celery


def ring(session: Session, queue: str) -> None:
    """Ring `queue` once this session has committed."""
    session.info.setdefault("rings", set()).add(queue)


@event.listens_for(OrmSession, "after_commit")
def _send_rings(session: OrmSession) -> None:
    for queue in session.info.pop("rings", ()):
        send_ring(queue)


@event.listens_for(OrmSession, "after_rollback")
def _drop_rings(session: OrmSession) -> None:
    session.info.pop("rings", None)


def send_ring(queue: str) -> None:
    try:
        make_queue(Settings().broker).send_task(LOOK, args=[queue], queue=queue, retry=False)
    except OperationalError as problem:
        log.warning("the broker did not take a message for %s, the reaper will ring again: %s", queue, problem)
