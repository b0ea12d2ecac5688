"""The whole service on one machine: `python -m app.up` starts its parts, watches them, and stops them together.

The API comes first, because it migrates the database, then the workers. The parts end with this process however it ends: the
kernel sends them TERM, and the broker, whose messages only ring bells, goes too. Only one `up` runs on a data folder.
"""

import fcntl
import http.client
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.broker import Broker, BrokerFailure
from app.children import Child
from app.settings import Settings, read_flags

START_SECONDS = 120.0
STOP_SECONDS = 40.0
"""A worker may take 25 s to let its stage save."""
LEAVE = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main() -> None:
    settings = read_flags("tunesmith up")
    try:
        with locked(settings.root):
            choose_port(settings)
            Service(settings).run()
    except (BrokerFailure, StartFailure) as failure:
        sys.exit(f"tunesmith up: {failure}")


class StartFailure(Exception):
    """The service cannot run as asked."""


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """The kernel drops the lock when this process ends."""
    path = root / "run" / "up.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise StartFailure(f"the service already runs on {root}, as process {file.read().strip()}.") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def choose_port(settings: Settings) -> None:
    """Refuses a port that is taken, and settles port 0, for the children too."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as problem:
            message = f"cannot listen on {settings.host}:{settings.port}: {problem.strerror}. Choose another with --port."
            raise StartFailure(message) from None
        settings.port = probe.getsockname()[1]
    os.environ["TUNESMITH_PORT"] = str(settings.port)


class Service:
    def __init__(self, settings: Settings):
        self._settings = settings
        logs = settings.root / "logs"
        self._broker = None
        if settings.broker_url is None:
            self._broker = Broker(settings.broker_socket, settings.root / "broker", logs / "broker.log")
        self._api = Child("api", [sys.executable, "-m", "app.main"], logs / "api.log")
        self._workers = [
            Child(f"{queue} worker", [sys.executable, "-m", "worker.main", "--queues", queue], logs / f"{queue}.log")
            for queue in ("gpu", "cpu", "notify")
        ]
        self._wakeup, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer)
        for number in (*LEAVE, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)

    def run(self) -> None:
        """Until a signal asks to leave."""
        try:
            if self._start():
                while not self._wait(1.0) & set(LEAVE):
                    self._watch()
                say("stopping; running stages save first")
        finally:
            self._stop()

    def _start(self) -> bool:
        """False when a signal came first."""
        say(f"data in {self._settings.root}")
        if self._broker:
            say(f"broker: {self._broker.start()}")
        self._api.start()
        deadline = time.monotonic() + START_SECONDS
        while not answers(self._settings):
            if not self._api.is_alive or time.monotonic() > deadline:
                raise StartFailure(f"the API did not start. The end of {self._api.log}:\n{read_end(self._api.log)}")
            if self._wait(0.1) & set(LEAVE):
                return False
        for worker in self._workers:
            worker.start()
        say(f"listening on {self._settings.address}")
        return True

    def _watch(self) -> None:
        if self._broker and not self._broker.is_alive:
            say(f"the broker died: {self._broker.start()}")
        for child in (self._api, *self._workers):
            if line := child.watch():
                say(line)

    def _wait(self, seconds: float) -> set[int]:
        """Sleeps until a signal comes, and tells which came."""
        if select.select([self._wakeup], [], [], seconds)[0]:
            return set(os.read(self._wakeup, 512))
        return set()

    def _stop(self) -> None:
        """TERM to all, again for each further signal; what is left after STOP_SECONDS is killed. The broker goes last."""
        children = (*self._workers, self._api)
        deadline = time.monotonic() + STOP_SECONDS
        asked = True
        while any(child.is_alive for child in children):
            late = time.monotonic() > deadline
            for child in children:
                if asked or late:
                    child.signal(signal.SIGKILL if late else signal.SIGTERM)
            asked = bool(self._wait(0.2) & set(LEAVE))
        if self._broker:
            self._broker.stop()


def answers(settings: Settings) -> bool:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104 — where to knock, not to listen
    connection = http.client.HTTPConnection(host, settings.port, timeout=2)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def read_end(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def say(line: str) -> None:
    print(f"tunesmith: {line}", flush=True)


if __name__ == "__main__":
    main()
