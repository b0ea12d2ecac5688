"""A worker: `python -m worker.main --queues gpu`. One process, one stage at a time, each stage in a process of its own.

Asked to leave (TERM, INT, QUIT, HUP), it lets its stage save, gives the run back and goes. Asked again, it hurries.
"""

import logging
import signal
import sys
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from celery.signals import setup_logging, worker_ready
from celery.worker import state

from app.db import make_engine
from app.queue import make_queue, send_ring
from app.storage import Storage
from worker.registration import Heartbeat, describe_worker
from worker.runner import Runner, StopRequest
from worker.settings import read_worker_flags
from worker.takeover import presence, take_over
from worker.tasks import add_tasks

ALONE = {"without_gossip": True, "without_mingle": True, "without_heartbeat": True}
"""The workers' rows say who lives; messages among workers would only cost time."""


def main() -> None:
    settings = read_worker_flags()
    if settings.queues != ["notify"] and find_spec("torch") is None:
        sys.exit("This worker runs stages, which need torch and more: pip install 'tunesmith[worker]'")
    write_log()
    engine = make_engine(settings.service.database)
    worker = describe_worker(settings.queues)
    runner = Runner(engine, settings.service, Storage(settings.service.root), worker.id)
    heartbeat = Heartbeat(engine, worker, settings.service.lease_seconds / 4)
    celery = make_queue(settings.service.broker)
    add_tasks(celery, runner)
    listen_for_signals(runner.stop)
    worker_ready.connect(make_ready(settings.queues), weak=False)
    with presence(runner.storage, worker.id):
        if settings.queues != ["notify"]:
            take_over(engine, runner.storage)
        heartbeat.start()
        try:
            consumer = without_signals(celery.Worker)
            consumer(queues=settings.queues, hostname=f"{worker.id}@{worker.host}", quiet=True, **ALONE).start()
        finally:
            heartbeat.stop()


def write_log() -> None:
    """What this service's modules tell. Celery, which would tell of every ring and silence the rest, tells of trouble only."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in ("celery", "kombu"):
        logging.getLogger(name).setLevel(logging.WARNING)
    setup_logging.connect(lambda **_: None, weak=False)  # who listens configures logging, and Celery does not


def listen_for_signals(stop: StopRequest) -> None:
    """HUP comes with a closed terminal, and, beside a TERM, to a worker that was stopped when its parent died: another signal
    is the same request, the same one again is a new one."""
    asked: Counter[int] = Counter()

    def leave(number: int, _: Any) -> None:
        asked[number] += 1
        stop.times = max(asked.values())
        state.should_stop = 0

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, leave)


def without_signals(base: Any) -> Any:
    """Celery's worker without its signal handlers. At HUP it would start itself anew, and leave the tree that it belongs to."""

    class Consumer(base):
        def install_platform_tweaks(self, worker: Any) -> None:
            pass

    return Consumer


def make_ready(queues: list[str]) -> Callable[..., None]:
    """When Celery is ready, the worker rings for itself: work may be waiting."""

    def ready(**_: Any) -> None:
        for queue in queues:
            send_ring(queue)

    return ready


if __name__ == "__main__":
    main()
