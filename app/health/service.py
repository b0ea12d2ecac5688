"""Asks each thing that the service needs whether it works."""

import os
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine, text

from app.db import read_session
from app.queue import make_queue
from app.settings import Settings
from app.storage import Storage
from app.workers import repository as workers


def check_all(engine: Engine, settings: Settings, storage: Storage) -> dict[str, dict[str, Any]]:
    checks: dict[str, Callable[[], dict[str, Any]]] = {
        "database": lambda: check_database(engine),
        "broker": lambda: check_broker(settings.broker),
        "storage": lambda: check_storage(storage),
        "workers": lambda: check_workers(engine, settings.lease_seconds),
    }
    return {name: try_out(check) for name, check in checks.items()}


def try_out(check: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return {"status": "up"} | check()
    except Exception as problem:
        return {"status": "down", "reason": f"{type(problem).__name__}: {problem}"}


def check_database(engine: Engine) -> dict[str, Any]:
    with read_session(engine) as session:
        session.execute(text("SELECT 1"))
    return {}


def check_broker(url: str) -> dict[str, Any]:
    with make_queue(url).connection_for_write() as connection:
        connection.ensure_connection(max_retries=0, timeout=2)
    return {}


def check_storage(storage: Storage) -> dict[str, Any]:
    state = os.statvfs(storage.root)
    if not os.access(storage.root, os.W_OK):
        raise PermissionError("the data folder is not writable")
    return {"free_bytes": state.f_bavail * state.f_frsize}


def check_workers(engine: Engine, lease_seconds: float) -> dict[str, Any]:
    """Up while each kind of stage has a live worker."""
    with read_session(engine) as session:
        queues = [queue for worker in workers.list_alive(session, lease_seconds) for queue in worker.queues]
    counts = {queue: queues.count(queue) for queue in ("gpu", "cpu")}
    missing = [queue for queue, count in counts.items() if count == 0]
    return counts | ({"status": "down", "reason": f"no live worker for: {', '.join(missing)}"} if missing else {})
