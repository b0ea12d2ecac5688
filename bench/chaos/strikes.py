"""The signals: which is drawn, where it hits, and what it interrupted."""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from database import is_running, may_lose
from folders import find
from processes import Process, find_processes, is_dead, read_state, wait_until
from service import LEASE_SECONDS
from sqlalchemy import Engine

WRITE, PUBLICATION, STEPS = "checkpoint write", "publication", "steps"
SHARES: dict[tuple[str, str, str | None], int] = {
    # signal, target, aim: how often it is drawn, of 100
    ("KILL", "stage", WRITE): 16,
    ("KILL", "worker", WRITE): 6,
    ("KILL", "worker", PUBLICATION): 8,
    ("KILL", "stage", STEPS): 10,
    ("KILL", "worker", STEPS): 8,
    ("KILL", "stage", None): 8,
    ("KILL", "worker", None): 6,
    ("KILL", "api", None): 10,
    ("KILL", "broker", None): 8,
    ("KILL", "up", None): 3,
    ("STOP", "worker", None): 6,
    ("STOP", "stage", None): 4,
    ("TERM", "worker", None): 7,
}
LONGEST_WAIT_SECONDS = 20.0
"""For a target, and for what an aimed signal waits for. Then another signal is drawn."""
DEATH_SECONDS = 5.0
LATEST_SECONDS = {WRITE: 0.03, PUBLICATION: 0.06, STEPS: 2.0, None: 0.0}
"""How long after the sighting an aimed signal may come."""
LONGEST_MORE_SECONDS = 11.0
"""How much longer than the lease and a second something may be stopped: so long that another worker's stage may have loaded."""
WRITES_APART = 16
AIM_SECONDS = 0.001


@dataclass(frozen=True)
class Plan:
    signal: str
    target: str
    aim: str | None
    pause: float
    """Seconds to wait before looking for the target."""
    late: float
    """Between 0 and 1: how far into what it aims at the signal comes."""
    choice: float
    """Between 0 and 1: which of several targets, and, aimed at a write, which of WRITES_APART checkpoints in a row."""


def draw(seed: int, number: int) -> Plan:
    """The same for the same two numbers, so that a run that goes on draws what it would have drawn."""
    numbers = random.Random(f"{seed} strike {number}")
    kind = numbers.choices(list(SHARES), list(SHARES.values()))[0]
    return Plan(*kind, pause=numbers.uniform(0.5, 4.0), late=numbers.random(), choice=numbers.random())


@dataclass(frozen=True)
class Target:
    process: Process
    stage: Process | None
    """The stage that is hit with it; for the API, the broker and `up` any that runs."""


class Striker:
    """Sends what is drawn. `meanwhile` is called often while it waits."""

    def __init__(self, root: Path, engine: Engine, meanwhile: Callable[[], None]):
        self._root, self._engine, self._meanwhile = root, engine, meanwhile
        self._stopped: dict[int, float] = {}

    def strike(self, plan: Plan) -> dict[str, Any] | None:
        """What was done, for the ledger. None when there was no fitting target in time."""
        self.wait(lambda: False, plan.pause)
        found: list[Target] = []

        def aim() -> bool:
            found[:] = self._find_targets(plan)
            return bool(found)

        if not self.wait(aim, LONGEST_WAIT_SECONDS):
            return None
        return self._send(plan, found[int(plan.choice * len(found))])

    def thaw(self, *, all: bool = False) -> None:
        """Lets go on what was stopped for longer than the lease."""
        now = time.monotonic()
        for pid, until in list(self._stopped.items()):
            if all or now >= until:
                del self._stopped[pid]
                if read_state(pid) == "T":
                    os.kill(pid, signal.SIGCONT)

    def wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Whether the condition came true in time."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                return False
            self.thaw()
            self._meanwhile()
            time.sleep(0.1)
        return True

    def _find_targets(self, plan: Plan) -> list[Target]:
        """Those that the plan names and that may be hit now. A worker with a stage is preferred to an idle one."""
        processes = [process for process in find_processes(self._root) if process.pid not in self._stopped]
        stages = [process for process in processes if process.kind == "stage"]
        targets = [Target(process, find_stage(process, stages)) for process in processes if process.kind == plan.target]
        if plan.target == "worker":
            targets = [target for target in targets if target.stage] or targets
        if plan.signal == "KILL" or plan.target == "worker":
            targets = [target for target in targets if self._may_hit(target.process)]
        if plan.aim:
            return self._sight(targets, plan)
        return targets

    def _may_hit(self, process: Process) -> bool:
        if process.kind == "stage":
            return may_lose(self._engine, process.supervisor)
        return process.kind != "worker" or may_lose(self._engine, process.pid)

    def _sight(self, targets: list[Target], plan: Plan) -> list[Target]:
        """Looks without a rest for a short while; gives the target that does what is aimed at."""
        deadline = time.monotonic() + 0.5
        write = int(plan.choice * WRITES_APART)
        while targets and time.monotonic() < deadline:
            for target in targets:
                if target.stage and does(target.stage, plan.aim, write):
                    return [target]
            time.sleep(AIM_SECONDS)
        return []

    def _send(self, plan: Plan, target: Target) -> dict[str, Any] | None:
        victim, stage = target.process, target.stage
        time.sleep(plan.late * LATEST_SECONDS[plan.aim])
        if is_dead(victim.pid):
            return None
        runs = stage is not None and not is_dead(stage.pid)
        os.kill(victim.pid, getattr(signal, f"SIG{plan.signal}"))
        if plan.signal == "STOP":
            self._stopped[victim.pid] = time.monotonic() + LEASE_SECONDS + 1 + LONGEST_MORE_SECONDS * plan.late
        inside = self._find_inside(stage, victim) if plan.signal == "KILL" and stage else None
        return {
            "signal": plan.signal,
            "target": victim.kind,
            "pid": victim.pid,
            "aim": plan.aim,
            "phase": describe_phase(stage) if stage else "between",
            "stage_runs": runs,
            "attempt": str(stage.attempt.relative_to(self._root)) if stage else None,
            "inside": inside,
        }

    def _find_inside(self, stage: Process, victim: Process) -> str | None:
        """What the kill interrupted, seen when the dead can change nothing more: a folder of a checkpoint that has not got its
        name, or a result that nobody has published."""
        if victim.pid not in (stage.pid, stage.supervisor):
            return None
        if not wait_until(lambda: is_dead(stage.pid) and is_dead(victim.pid), DEATH_SECONDS, every=0.005):
            return None
        if list_parts(stage.attempt):
            return WRITE
        unpublished = (stage.attempt / "result.json").exists() and is_running(self._engine, stage.attempt)
        return PUBLICATION if unpublished and victim.kind == "worker" else None


def find_stage(process: Process, stages: list[Process]) -> Process | None:
    if process.kind in ("worker", "stage"):
        return next((stage for stage in stages if process.pid in (stage.pid, stage.supervisor)), None)
    return next(iter(stages), None)


def does(stage: Process, aim: str | None, write: int) -> bool:
    """Whether the stage does what is aimed at: writes a checkpoint whose number ends as asked, has written its result, or has
    done a step."""
    if aim == WRITE:
        return any(int(part.name.rpartition("-")[2]) % WRITES_APART == write for part in list_parts(stage.attempt))
    if aim == STEPS:
        return bool(find(stage.attempt, "out/checkpoints/step-*"))
    return (stage.attempt / "result.json").exists()


def list_parts(attempt: Path) -> list[Path]:
    return find(attempt, "out/checkpoints/.part-*")


def describe_phase(stage: Process) -> str:
    """The stage, and in training the step: the last that was reported."""
    name = stage.attempt.parent.name
    if name != "train":
        return name
    try:
        lines = (stage.attempt / "events.jsonl").read_bytes().rpartition(b"\n")[0].splitlines()
    except FileNotFoundError:
        lines = []
    steps = [step for line in lines[-6:] if (step := json.loads(line).get("step")) is not None]
    return f"train, step {steps[-1]}" if steps else "train, loading"
