"""Child processes that end with their parent and are started again when they die."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
STEADY_SECONDS = 60.0
"""A child that lived this long has not failed to start: its back-off begins anew."""
LONGEST_PAUSE_SECONDS = 30.0

libc = ctypes.CDLL(None)


def spawn(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Starts `command` in a process group of its own, so that a terminal's Ctrl-C reaches only the parent.

    On Linux the kernel sends it TERM when the parent dies, however that happens.
    """
    parent = os.getpid()

    def end_with_parent() -> None:
        if sys.platform == "linux":
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0, preexec_fn=end_with_parent
        )


class Child:
    """One part of the service. `watch` starts it again, after a pause that doubles while it keeps dying."""

    def __init__(self, name: str, command: list[str], log: Path):
        self.name, self.command, self.log = name, command, log
        self._deaths = 0
        self._start_at = 0.0
        self._started_at = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._started_at = time.monotonic()
        self._process = spawn(self.command, self.log)

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def watch(self) -> str | None:
        """Starts the child again when its pause is over. Gives a line to print when it has just died."""
        if self._process is None:
            if time.monotonic() >= self._start_at:
                self.start()
            return None
        status = self._process.poll()
        if status is None:
            return None
        self._deaths = 1 if time.monotonic() - self._started_at > STEADY_SECONDS else self._deaths + 1
        pause = min(0.25 * 2**self._deaths, LONGEST_PAUSE_SECONDS)
        self._start_at = time.monotonic() + pause
        self._process = None
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
        return f"{self.name} {how}, starting it again in {pause:.1f} s; its log: {self.log}"

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
