"""The jobs of a chaos run: submitted over HTTP as any client would, a few at a time, all with one training."""

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ledger import Ledger

from client.api import Client, Unreachable

MODEL = "two-layers"
IN_FLIGHT = 3
ENDED = ("succeeded", "failed", "cancelled")
EXPORTS = {
    "adapter": [{"kind": "adapter"}],
    "merged": [{"kind": "adapter"}, {"kind": "merged"}],
    "gguf": [{"kind": "adapter"}, {"kind": "merged"}, {"kind": "gguf", "quantization": "q8_0"}],
}
SHARES = {"adapter": 14, "merged": 3, "gguf": 3}
"""How often each is drawn. A conversion takes longer than the training."""
REFERENCE_SECONDS = 1800.0
FORGIVING_SECONDS = 600.0
"""How long the API may be away before a call fails."""

T = TypeVar("T")


def prepare_files(folder: Path) -> None:
    """The base model and the rows, unless an earlier start made them."""
    if not (folder / "models").exists():
        subprocess.run([sys.executable, Path(__file__).parent / "base_model.py", folder / "models.part" / MODEL], check=True)
        (folder / "models.part").rename(folder / "models")
    rows = [f"What is {number}?\0It is {number % 7}." for number in range(200)]
    turns = [zip(("user", "assistant"), row.split("\0"), strict=True) for row in rows]
    messages = [{"messages": [{"role": role, "content": content} for role, content in turn]} for turn in turns]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in messages))


def make_spec(file: str, exports: str, number: str, steps: int) -> dict[str, Any]:
    """A checkpoint after each step, and dropout, so that a resumed run needs the random state, too."""
    return {
        "name": "chaos",
        "base_model": MODEL,
        "dataset": {"file": file},
        "labels": {"number": number},
        "lora": {"dropout": 0.1},
        "training": {"max_steps": steps, "max_seq_length": 64, "gradient_accumulation": 1, "learning_rate": 1e-3},
        "checkpoints": {"every_steps": 1},
        "exports": EXPORTS[exports],
    }


class Workload:
    """Keeps IN_FLIGHT jobs going from a thread until `finish`."""

    def __init__(self, client: Client, ledger: Ledger, folder: Path, seed: int, steps: int):
        self._client, self._ledger, self._folder, self._steps = client, ledger, folder, steps
        self._random = random.Random(f"{seed} jobs {time.time_ns()}")
        self._thread = threading.Thread(target=self._loop, name="workload", daemon=True)
        self._enough = threading.Event()

    def run_reference(self) -> None:
        """One job that nothing disturbs; its artifacts' hashes are what all others must make."""
        if self._ledger.all("reference"):
            return
        file = self._patiently(lambda: self._client.upload(self._folder / "rows.jsonl"))["id"]
        job = self._submit(file, "gguf", "reference")
        deadline = time.monotonic() + REFERENCE_SECONDS
        while job["status"] not in ENDED and time.monotonic() < deadline:
            time.sleep(0.5)
            job = self._look(job["id"])
        if job["status"] != "succeeded":
            raise SystemExit(f"the undisturbed job is {job['status']}: {job['error']}")
        hashes = {artifact["name"]: artifact["sha256"] for artifact in self._client.artifacts(job["id"])}
        self._ledger.add("reference", file=file, job=job["id"], artifacts=hashes, stages=job["stages"])

    def start(self) -> None:
        self._thread.start()

    def is_done(self) -> bool:
        """From the first call on it submits no more. Whether all jobs have ended."""
        self._enough.set()
        return not self._thread.is_alive()

    def _loop(self) -> None:
        going = {job["id"] for job in self._ledger.all("job")}
        file = self._ledger.all("reference")[0]["file"]
        while going or not self._enough.is_set():
            going = {job_id for job_id in going if self._look(job_id)["status"] not in ENDED}
            if len(going) < IN_FLIGHT and not self._enough.is_set():
                exports = self._random.choices(list(SHARES), list(SHARES.values()))[0]
                going.add(self._submit(file, exports, str(time.time_ns()))["id"])
            time.sleep(0.5)

    def _submit(self, file: str, exports: str, number: str) -> dict[str, Any]:
        """A broken connection leaves open whether the job was accepted: then its label tells."""
        spec = make_spec(file, exports, number, self._steps)

        def submit_once() -> dict[str, Any]:
            found = [job for job in self._client.jobs(limit=IN_FLIGHT + 2) if job["labels"]["number"] == number]
            return found[0] if found else self._client.submit(spec)

        job = self._patiently(submit_once)
        if number != "reference":
            self._ledger.add("job", id=job["id"], exports=exports)
        return job

    def _look(self, job_id: str) -> dict[str, Any]:
        return self._patiently(lambda: self._client.job(job_id))

    def _patiently(self, call: Callable[[], T]) -> T:
        deadline = time.monotonic() + FORGIVING_SECONDS
        while True:
            try:
                return call()
            except Unreachable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
