"""The service under attack: `tunesmith up` and one more worker beside it, as on a machine that runs two of them."""

import os
import signal
import socket
import sys
import time
from pathlib import Path

from processes import Process, find_processes, is_dead, wait_until

from app import children
from app.children import Child
from client.api import Client, ClientError

LEASE_SECONDS = 4.0
REAPER_SECONDS = 1.0
READY_SECONDS = 600.0
LEAVE_SECONDS = 300.0
WORKERS = 4


class Service:
    """`watch` starts what has ended again. All of it must be called in the main thread: children end with the one they have."""

    def __init__(self, folder: Path):
        self.root = (folder / "data").resolve()
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        os.environ |= {
            "TUNESMITH_DATA_DIR": str(self.root),
            "TUNESMITH_MODELS_DIR": str((folder / "models").resolve()),
            "TUNESMITH_PORT": str(port),
            "TUNESMITH_LEASE_SECONDS": str(LEASE_SECONDS),
            "TUNESMITH_REAPER_SECONDS": str(REAPER_SECONDS),
            "OMP_NUM_THREADS": "1",
        }
        self.url = f"http://127.0.0.1:{port}"
        children.LONGEST_PAUSE_SECONDS = 0.5
        up = [sys.executable, str(Path(__file__).parent / "eager_up.py")]
        worker = [sys.executable, "-m", "worker.main", "--queues", "gpu,cpu"]
        self._children = [
            Child("up", up, folder / "up.log"),
            Child("one more worker", worker, folder / "worker.log"),
        ]

    def start(self) -> Client:
        """Gives a client, once the API and every worker are there."""
        client = Client(self.url)
        deadline = time.monotonic() + READY_SECONDS
        self._children[0].start()
        while not self._is_ready(client):
            if time.monotonic() > deadline:
                raise SystemExit(f"the service did not get ready; its logs are in {self.root.parent} and {self.root / 'logs'}")
            time.sleep(0.2)
        return client

    def _is_ready(self, client: Client) -> bool:
        try:
            workers = client.workers()
        except ClientError:
            return False
        if workers and not self._children[1].is_alive:
            self._children[1].start()
        return len([worker for worker in workers if not is_dead(worker["pid"])]) >= WORKERS

    def watch(self) -> None:
        for child in self._children:
            child.watch()

    def stop(self) -> list[Process]:
        """Asks both to leave. What is left of the service then is killed, and returned."""
        for child in self._children:
            child.signal(signal.SIGTERM)
        wait_until(lambda: not find_processes(self.root), LEAVE_SECONDS, every=0.2)
        left = find_processes(self.root)
        for process in left:
            os.kill(process.pid, signal.SIGKILL)
        return left
