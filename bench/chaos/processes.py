"""The processes of one service, as /proc shows them."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

PROC = Path("/proc")
PARTS = {"worker.stages": "stage", "worker.main": "worker", "app.main": "api", "eager_up.py": "up"}


@dataclass(frozen=True)
class Process:
    pid: int
    parent: int
    state: str
    """The kernel's letter: T is stopped, Z is dead and not yet reaped."""
    kind: str
    """`up`, `api`, `worker`, `stage`, `converter`, `broker`, or `other`."""
    words: tuple[str, ...]

    @cached_property
    def attempt(self) -> Path:
        """Of a stage: its folder."""
        return Path(self.words[self.words.index("worker.stages") + 1])

    @property
    def supervisor(self) -> int:
        """Of a stage: the worker that started it."""
        return int(self.words[-1])


def find_processes(root: Path) -> list[Process]:
    """Those that run on the data folder `root`, dead ones and this one left out."""
    found = {}
    for folder in PROC.iterdir():
        if folder.name.isdecimal() and int(folder.name) != os.getpid() and (process := read_process(folder, str(root))):
            found[process.pid] = process
    return [process for process in found.values() if not is_copy(process, found)]


def is_copy(process: Process, found: dict[int, Process]) -> bool:
    """A fork that has not become another program yet looks like its parent."""
    parent = found.get(process.parent)
    return parent is not None and parent.words == process.words


def read_process(folder: Path, root: str) -> Process | None:
    try:
        words = tuple((folder / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0"))
        kind = find_kind(words)
        if not any(root in word for word in words) and (
            (kind == "other" and "python" not in words[0]) or not is_told(folder, root)
        ):
            return None
        state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    return None if state in "ZX" else Process(int(folder.name), int(parent), state, kind, words)


def is_told(folder: Path, root: str) -> bool:
    """Whether its environment names the data folder."""
    return f"TUNESMITH_DATA_DIR={root}\0".encode() in (folder / "environ").read_bytes() + b"\0"


def find_kind(words: tuple[str, ...]) -> str:
    for word in words:
        if kind := PARTS.get(Path(word).name):
            return kind
        if "valkey-server" in word:
            return "broker"
        if word.endswith("convert_hf_to_gguf.py"):
            return "converter"
    return "other"


def read_state(pid: int) -> str:
    """As `Process.state`; X when there is none."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def is_dead(pid: int) -> bool:
    return read_state(pid) in "ZX"


def wait_until(condition: Callable[[], object], seconds: float, every: float = 0.02) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True
