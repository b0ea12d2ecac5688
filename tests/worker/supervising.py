"""A supervisor on a database of its own, with stages that each test scripts."""

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, update
from sqlmodel import Session, col, select

from app.db import read_session, write_session
from app.jobs import repository as jobs
from app.jobs import stage_runs
from app.jobs.service import resolve
from app.jobs.spec import SPEC_VERSION, JobSpec
from app.jobs.states import EventType, Resource, Stage
from app.models import Blob, Event, File, Job, StageRun, WebhookDelivery, now
from app.settings import Settings
from app.storage import Storage
from worker.leftovers import RECORD
from worker.runner import Runner, work

StartWorker = Callable[[str], subprocess.Popen]


PATIENCE_SECONDS = 120.0
"""How long a test waits for what will happen on any machine. Only a failure takes so long."""


def wait_until(condition: Callable[[], Any], seconds: float = PATIENCE_SECONDS) -> Any:
    """The first true value of `condition`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return value


def read_state(pid: int) -> str | None:
    """The kernel's letter for what a process does: T is stopped, Z is dead and not yet reaped. None when it is not there."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None


def is_gone(pid: int) -> bool:
    return read_state(pid) in (None, "Z")


class Halts:
    """Where the stages that a test starts stop themselves: see `halting/sitecustomize.py`."""

    def __init__(self, path: Path):
        self._path = path

    def name(self, words: str) -> None:
        """Part of a report, or the end of the path of a file to be written; "" for nowhere."""
        part = self._path.with_suffix(".part")
        part.write_text(words)
        part.replace(self._path)

    def wait(self, attempt: Path) -> int:
        """The process of the attempt, once it has stopped itself."""
        return wait_until(lambda: self._find(attempt), seconds=600)

    def _find(self, attempt: Path) -> int | None:
        record = attempt / RECORD
        pid = json.loads(record.read_text())["pid"] if record.exists() else None
        return pid if pid and read_state(pid) == "T" else None


class Supervised:
    """What a test sees of the jobs that it submits."""

    def __init__(self, engine: Engine, settings: Settings, scripts: Path):
        self.engine, self.settings, self.scripts = engine, settings, scripts
        self.storage = Storage(settings.root)
        self.runner = self.make_runner("wrk_test")

    def make_runner(self, worker_id: str) -> Runner:
        return Runner(self.engine, self.settings, self.storage, worker_id)

    def script(self, source: str) -> None:
        (self.scripts / "script.py").write_text(textwrap.dedent(source))

    def upload(self, content: bytes, filename: str = "data.jsonl") -> File:
        sha256 = hashlib.sha256(content).hexdigest()
        blob = self.storage.blob(sha256)
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        with write_session(self.engine) as session:
            session.merge(Blob(sha256=sha256, bytes=len(content)))
            session.flush()
            file = File(filename=filename, purpose="fine-tune", blob_sha256=sha256)
            session.add(file)
        return file

    def inspect(self, file: File) -> None:
        with write_session(self.engine) as session:
            stage_runs.enqueue(session, file=file, stage=Stage.INSPECT)

    def submit(self, *, request_id: str | None = None, **fields: Any) -> str:
        fields = {"base_model": "m", "dataset": {"file": self.upload(b"{}\n").id}, "exports": [{"kind": "adapter"}]} | fields
        spec = resolve(JobSpec.model_validate(fields))
        with write_session(self.engine, request_id=request_id) as session:
            job = Job(base_model=spec.base_model, spec=spec.model_dump(mode="json"), spec_version=SPEC_VERSION)
            session.add(job)
            jobs.record_event(session, job, EventType.JOB_QUEUED, "queued")
            stage_runs.enqueue(session, job=job, stage=Stage.PREPARE)
        return job.id

    def work(self, *resources: Resource) -> None:
        """Works as a worker for each resource in turn, until neither has anything left."""
        resources = resources or (Resource.CPU, Resource.GPU)
        while self.waiting() & set(resources):
            for resource in resources:
                work(self.runner, resource)

    @contextmanager
    def working(self, resource: Resource = Resource.CPU) -> Iterator[threading.Thread]:
        """Works in the background; waits at the end until nothing is left."""
        thread = threading.Thread(target=work, args=[self.runner, resource], daemon=True)
        thread.start()
        yield thread
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()

    def waiting(self) -> set[Resource]:
        with read_session(self.engine) as session:
            return set(stage_runs.waiting(session))

    def expire_leases(self) -> None:
        """As if those who hold them had not been heard of for too long."""
        with write_session(self.engine) as session:
            for table in (StageRun, WebhookDelivery):
                held = update(table).where(col(table.lease_until).is_not(None))
                session.execute(held.values(lease_until=now() - timedelta(seconds=1)))

    def freeze(self, process: subprocess.Popen) -> None:
        """Stops a child at a moment when it does not hold the database's lock: nobody else could write until it wakes."""
        while True:
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            if self._can_be_written_to():
                return
            process.send_signal(signal.SIGCONT)
            time.sleep(0.05)

    def _can_be_written_to(self) -> bool:
        with closing(sqlite3.connect(self.engine.url.database or "", timeout=1)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False
        return True

    @contextmanager
    def session(self) -> Iterator[Session]:
        with read_session(self.engine) as session:
            yield session

    def job(self, job_id: str) -> Job:
        with read_session(self.engine) as session:
            return jobs.get(session, job_id)

    def runs(self, job_id: str) -> list[StageRun]:
        with read_session(self.engine) as session:
            return stage_runs.attempts(session, job_id)

    def events(self, job_id: str) -> list[Event]:
        with read_session(self.engine) as session:
            return list(session.exec(select(Event).where(Event.job_id == job_id).order_by(col(Event.number))))
