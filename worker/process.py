"""One stage as a process in a group of its own: started, listened to, stopped, reaped."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from app.disk import ALMOST_NOTHING, free_bytes
from worker.leftovers import MARK, remove_record, write_record
from worker.stages import DISK_FULL_STATUS

KERNEL_COUNTERS = Path("/proc/vmstat")
POLL_SECONDS = 0.05


class StageProcess:
    """A running attempt. Whoever starts one calls `close` in the end, which leaves no process of its group behind."""

    def __init__(self, attempt: Path, request: dict[str, Any], secrets: dict[str, str]):
        """`request` becomes input.json. The secrets go to the process's stdin and nowhere else."""
        attempt.mkdir(parents=True, exist_ok=True)
        (attempt / "input.json").write_text(json.dumps(request))
        self.attempt = attempt
        self._memory_kills_before = count_memory_kills()
        with (attempt / "log.txt").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "worker.stages", str(attempt), str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=stage_environment() | {MARK: str(attempt)},
                start_new_session=True,
            )
        try:
            write_record(attempt, self.pid)
            with suppress(BrokenPipeError), self._process.stdin as stdin:  # type: ignore[union-attr]
                stdin.write(json.dumps(secrets).encode())
        except OSError:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self, seconds: float) -> bool:
        """Whether the process has ended, known at the latest after `seconds`. Not reaped yet, it keeps its group's number."""
        deadline = time.monotonic() + seconds
        while not self._has_ended():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(POLL_SECONDS, left))
        return True

    def read_result(self) -> dict[str, Any] | None:
        """None when the process died before it could write one."""
        path = self.attempt / "result.json"
        return json.loads(path.read_text()) if path.exists() else None

    def ask_to_stop(self) -> None:
        os.killpg(self.pid, signal.SIGTERM)

    def close(self) -> None:
        """Kills what is left of the group and reaps the process."""
        if self._process.returncode is None:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
            remove_record(self.attempt)

    def was_killed_for_memory(self) -> bool:
        """Of a closed process: whether the kernel ended it because the host, or its share of it, had no memory left."""
        return self._process.returncode == -signal.SIGKILL and count_memory_kills() > self._memory_kills_before

    def found_disk_full(self) -> bool:
        """Of a closed process: whether it ended without a result because there was no room for one, or for a mapped page."""
        status = self._process.returncode
        return status == DISK_FULL_STATUS or (status == -signal.SIGBUS and free_bytes(self.attempt) < ALMOST_NOTHING)

    def describe_end(self) -> str:
        """How a closed process ended, in words."""
        status = self._process.returncode
        if status < 0:
            return f"was killed by {signal.Signals(-status).name}"
        return f"ended with exit status {status}"

    def _has_ended(self) -> bool:
        if self._process.returncode is not None:
            return True
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


STAGE_ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",
    # Threads that wait for work by spinning cost more CPU than they save when other processes want the cores too.
    "OMP_WAIT_POLICY": "PASSIVE",
    "OPENBLAS_NUM_THREADS": "1",  # NumPy's, which spin from its import on; torch has its own
    # Batches differ in width; segments that grow keep the allocator from reserving anew for each.
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
}


def stage_environment() -> dict[str, str]:
    """A stage is told all that it needs in its inputs; the service's settings, with their passwords, stay here."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TUNESMITH_")}
    return STAGE_ENVIRONMENT | kept


def count_memory_kills() -> int:
    """How many processes the kernel has killed for want of memory, in any control group."""
    if not KERNEL_COUNTERS.exists():
        return 0
    return int(dict(line.split() for line in KERNEL_COUNTERS.read_text().splitlines()).get("oom_kill", 0))
