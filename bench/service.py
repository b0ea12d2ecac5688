"""A Tunesmith of a benchmark's own: started on a free port, waited for, stopped."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from client.api import Client, ClientError

ROOT = Path(__file__).resolve().parent.parent
PORT = 8765
READY_SECONDS = 90
WORKERS = 3


@contextmanager
def running(data_dir: Path, *flags: str) -> Iterator[tuple[Client, psutil.Popen]]:
    """`tunesmith up` with its workers there, and a client of it. The second value is the process at the root of its tree."""
    command = [sys.executable, "-m", "app.up", "--data-dir", str(data_dir), "--port", str(PORT), *flags]
    service = psutil.Popen(command, cwd=ROOT)
    try:
        client = Client(f"http://127.0.0.1:{PORT}")
        wait_until_ready(client, service)
        yield client, service
    finally:
        service.terminate()
        service.wait(60)


def wait_until_ready(client: Client, service: subprocess.Popen) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and service.poll() is None:
        try:
            if len(client.workers()) == WORKERS:
                return
        except ClientError:
            pass
        time.sleep(0.2)
    raise SystemExit("the service did not get ready")


def run_job(client: Client, spec: dict) -> dict:
    """Submits and waits for the end, whatever it is."""
    return wait_for_end(client, client.submit(spec))


def wait_for_end(client: Client, job: dict) -> dict:
    while job["status"] not in ("succeeded", "failed", "cancelled"):
        time.sleep(0.5)
        job = client.job(job["id"])
    return job
