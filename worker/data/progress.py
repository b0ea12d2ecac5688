"""Says now and then how far a long pass over the data has come."""

import time
from typing import Any

SECONDS = 2.0


class Pulse:
    """Reports `what: n of total rows` at its start and at most every SECONDS, however often it is told."""

    def __init__(self, report: Any, what: str, total: int | None = None):
        self._report, self._what, self._total = report, what, total
        self._speak(0)

    def beat(self, done: int) -> None:
        if time.monotonic() - self._spoken > SECONDS:
            self._speak(done)

    def _speak(self, done: int) -> None:
        self._spoken = time.monotonic()
        of = "" if self._total is None else f" of {self._total}"
        self._report("progress", message=f"{self._what}: {done}{of} rows")
