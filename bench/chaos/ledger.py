"""What a run did and saw, one JSON object a line, on disk before the next thing happens: a run that was cut off goes on."""

import json
import threading
import time
from pathlib import Path
from typing import Any


class Ledger:
    """Entries have a `kind`: run, reference, job, strike, violation or end."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        self._lock = threading.Lock()
        self._file.seek(0)
        whole = self._file.read().rpartition(b"\n")[0]
        self._entries = [json.loads(line) for line in whole.splitlines()]
        self._file.truncate(len(whole) + bool(whole))

    def add(self, kind: str, **data: Any) -> None:
        entry = {"kind": kind, "time": round(time.time(), 3), **data}
        with self._lock:
            self._file.write(json.dumps(entry).encode() + b"\n")
            self._file.flush()
            self._entries.append(entry)

    def all(self, kind: str) -> list[dict[str, Any]]:
        with self._lock:
            return [entry for entry in self._entries if entry["kind"] == kind]

    @property
    def kills(self) -> int:
        """SIGKILLs sent so far."""
        return sum(strike["signal"] == "KILL" for strike in self.all("strike"))
