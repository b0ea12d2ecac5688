"""Loaded by stage processes that tests start: the kernel kills their first attempts in the middle of a write.

$DIES_WRITING is JSON: by stage, words and a number of bytes. Once a file with such words in its path has been opened to be
written, no file may grow beyond so many bytes, and who tries to is dead (SIGXFSZ).
"""

import json
import os
import resource
import signal
import sys
from pathlib import Path


def watch(words: str, most: int) -> None:
    opened = False

    def look(event, arguments) -> None:
        nonlocal opened
        if event != "open":
            return
        if opened:  # and has been given its size, if it gets that first
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        opened = opened or ("w" in (arguments[1] or "") and words in str(arguments[0]))

    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.addaudithook(look)


if sys.orig_argv[1:3] == ["-m", "worker.stages"]:
    attempt = Path(sys.orig_argv[3])
    moments = json.loads(os.environ["DIES_WRITING"])
    if attempt.name == "1" and attempt.parent.name in moments:
        watch(*moments[attempt.parent.name])
