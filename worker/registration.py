"""The worker's row: who it is, that it lives, and what it runs on."""

import json
import logging
import os
import platform
import socket
import subprocess
import sys
import threading
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sqlalchemy import Engine, update
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import col

from app.db import write_session
from app.jobs.stage_runs import read_clock
from app.models import Worker

log = logging.getLogger(__name__)

PACKAGES = ("tunesmith", "torch", "transformers", "trl", "peft", "bitsandbytes", "gguf")


def describe_worker(queues: list[str]) -> Worker:
    return Worker(host=socket.gethostname(), pid=os.getpid(), queues=queues, versions=find_versions())


def find_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


class Heartbeat:
    """Keeps the worker's row fresh from a thread, also while a stage runs. The row goes when it stops."""

    def __init__(self, engine: Engine, worker: Worker, seconds: float):
        self._engine, self._worker, self._seconds = engine, worker, seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._write()
        self._thread.start()
        if "gpu" in self._worker.queues:
            threading.Thread(target=self._find_device, name="device", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        with write_session(self._engine) as session:
            if row := session.get(Worker, self._worker.id):
                session.delete(row)

    def _beat(self) -> None:
        while not self._stopped.wait(self._seconds):
            try:
                self._write()
            except SQLAlchemyError as problem:
                log.warning("no heartbeat, the database does not answer: %s", problem)

    def _write(self) -> None:
        """Adds the row again when the reaper took this worker for dead, after a freeze."""
        with write_session(self._engine) as session:
            beat = update(Worker).where(col(Worker.id) == self._worker.id).values(heartbeat_at=read_clock(session))
            if session.connection().execute(beat).rowcount == 0:
                session.add(Worker(**self._worker.model_dump(exclude={"heartbeat_at", "stage_run_id"})))

    def _find_device(self) -> None:
        device = find_device()
        self._worker.device = device
        with write_session(self._engine) as session:
            session.execute(update(Worker).where(col(Worker.id) == self._worker.id).values(device=device))


def find_device() -> dict[str, Any] | None:
    """Asked of another process, because torch has no place in this one."""
    found = subprocess.run([sys.executable, "-m", "worker.device"], capture_output=True, text=True)
    if found.returncode:
        log.warning("the device could not be found: %s", found.stderr)
        return None
    return json.loads(found.stdout)
