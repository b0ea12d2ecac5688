"""The processes of an attempt whose worker has died: found by what was written down at their start, ended as a group.

<attempt>/process.json      {"pid": …, "started": …}: the stage's process, which leads a group of its own, and when it started

On Linux a stage dies with its worker. Its children need not, and elsewhere nothing does.
"""

import json
import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

MARK = "TUNESMITH_ATTEMPT"
"""In the environment of every process of an attempt: its folder. A group that has lost its leader is known by it."""
RECORD = "process.json"
SAME_START_SECONDS = 2.0
"""Start times are counted from when the system was booted, which it tells in whole seconds: another one at two looks where its
clock is being set right."""
END_SECONDS = 5.0


def write_record(attempt: Path, pid: int) -> None:
    import psutil  # comes with the worker's extra, which a worker for notifications does without

    part = attempt / f"{RECORD}.part"
    part.write_text(json.dumps({"pid": pid, "started": psutil.Process(pid).create_time()}))
    part.replace(attempt / RECORD)


def remove_record(attempt: Path) -> None:
    (attempt / RECORD).unlink(missing_ok=True)


def end_earlier(attempt: Path) -> None:
    """Ends what is left of the attempts before this one at the same stage, so that never two of them run."""
    for earlier in attempt.parent.glob("*"):
        if earlier != attempt and end_group(earlier):
            log.warning("ended the abandoned process of %s", earlier)


def end_group(attempt: Path) -> bool:
    """Kills what still runs of an attempt that nobody attends to any more, and waits for its end. Whether there was anything.

    A process whose number was given away again is left alone: the leader of the group must have started when ours did, or a
    member must carry the attempt's mark.
    """
    try:
        record = json.loads((attempt / RECORD).read_text())
    except FileNotFoundError:
        return False
    if not any(is_ours(member, record, attempt) for member in members(record["pid"])):
        return False
    with suppress(ProcessLookupError):
        os.killpg(record["pid"], signal.SIGKILL)
    deadline = time.monotonic() + END_SECONDS
    while any(members(record["pid"])) and time.monotonic() < deadline:
        time.sleep(0.02)
    remove_record(attempt)
    return True


def members(group: int) -> Iterator[Any]:
    """The processes of a group that have not ended."""
    import psutil

    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def is_ours(process: Any, record: dict[str, Any], attempt: Path) -> bool:
    import psutil

    if process.pid == record["pid"]:
        return abs(process.create_time() - record["started"]) < SAME_START_SECONDS
    with suppress(psutil.Error):
        return process.environ().get(MARK) == str(attempt)
    return False
