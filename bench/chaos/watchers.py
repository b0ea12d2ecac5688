"""Threads that watch from outside, all the time: processes that should not be there, and files that are not whole."""

import hashlib
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from database import is_running
from folders import find
from ledger import Ledger
from processes import Process, find_processes, read_state
from sqlalchemy import Engine

from client.api import Client, ClientError
from worker.training import checkpoints

LOOK_SECONDS = 0.25
SETTLING_LOOKS = 12
"""How often a stage or a converter may be seen to outlive its worker, or a stage its run: in three seconds, and longer where
the machine is so busy that looking takes its time."""


class Watcher:
    """Calls `look` in a thread until it is stopped. What is found goes to the ledger, each thing once."""

    def __init__(self, ledger: Ledger):
        self._ledger = ledger
        self._told: set[str] = set()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._loop, name=type(self).__name__, daemon=True)

    def look(self) -> None:
        raise NotImplementedError

    def tell(self, what: str, detail: str) -> None:
        if detail not in self._told:
            self._told.add(detail)
            self._ledger.add("violation", what=what, detail=detail)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        if not self._thread.is_alive():
            raise SystemExit(f"{self._thread.name} has died, and nobody knows what it would have seen")
        self._stopped.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._stopped.wait(LOOK_SECONDS):
            self.look()


class ProcessWatcher(Watcher):
    """Finds attempts with two live processes, and orphans: stages and converters that outlive their parent or their run."""

    def __init__(self, ledger: Ledger, root: Path, engine: Engine):
        super().__init__(ledger)
        self._root, self._engine = root, engine
        self._suspected: dict[tuple[int, str], int] = {}

    def look(self) -> None:
        processes = find_processes(self._root)
        stages = [process for process in processes if process.kind == "stage"]
        for attempt, count in Counter(stage.attempt for stage in stages).items():
            if count > 1:
                self.tell("run twice", f"{count} processes for {attempt}")
        suspects = {(stage.pid, f"stage {stage.attempt} {why}") for stage in stages if (why := self._suspect(stage))}
        parents = {stage.pid for stage in stages}
        converters = [process for process in processes if process.kind == "converter" and process.parent not in parents]
        suspects |= {(converter.pid, f"converter {' '.join(converter.words)}") for converter in converters}
        self._suspected = {suspect: self._suspected.get(suspect, 0) + 1 for suspect in suspects}
        for (pid, detail), looks in self._suspected.items():
            if looks > SETTLING_LOOKS:
                self.tell("orphan", f"{pid}: {detail}")

    def _suspect(self, stage: Process) -> str | None:
        """A worker that is stopped can end nothing, so its stage is left alone until it goes on."""
        state = read_state(stage.supervisor)
        if state in "ZX" or stage.parent != stage.supervisor:
            return "outlives its worker"
        if state != "T" and not is_running(self._engine, stage.attempt):
            return "outlives its run"
        return None


class FileWatcher(Watcher):
    """Reads everything that has its final name, as it appears or changes: checkpoints, blobs, and artifacts over HTTP."""

    def __init__(self, ledger: Ledger, root: Path, client: Client):
        super().__init__(ledger)
        self._root, self._client = root, client
        self._read: set[str] = set()
        self.checkpoints = self.blobs = self.artifacts = 0

    def look(self) -> None:
        for path in find(self._root, "jobs/*/train/*/out/checkpoints/step-*"):
            with suppress(FileNotFoundError):  # pruned
                self._once(f"{path} {path.stat().st_mtime_ns}", partial(self._check_checkpoint, path))
        for path in find(self._root, "blobs/*/*"):
            self._once(str(path), partial(self._check_blob, path))
        try:
            for job in self._client.jobs(limit=5):
                for artifact in job["artifacts"]:
                    self._once(artifact["url"] + artifact["sha256"], partial(self._check_artifact, job["id"], artifact))
        except ClientError:  # the API is down just now
            return

    def read_all_again(self) -> None:
        self._read.clear()
        self.look()

    def _once(self, name: str, check: Callable[[], None]) -> None:
        if name not in self._read:
            check()
            self._read.add(name)

    def _check_checkpoint(self, path: Path) -> None:
        """One that is pruned meanwhile loses its name first."""
        try:
            checkpoints.read(path)
        except checkpoints.Incomplete as reason:
            if path.exists():
                self.tell("partial", f"{path}: {reason}")
                return
        self.checkpoints += 1

    def _check_blob(self, path: Path) -> None:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != path.name:
                self.tell("partial", f"{path} is not what its name says")
        self.blobs += 1

    def _check_artifact(self, job_id: str, artifact: dict) -> None:
        with self._client.artifact(job_id, artifact["name"]) as answer:
            content = b"".join(answer.iter_raw())
        if hashlib.sha256(content).hexdigest() != artifact["sha256"] or len(content) != artifact["bytes"]:
            self.tell("partial", f"artifact {job_id} {artifact['name']} over HTTP")
        self.artifacts += 1
