"""Four processes write progress, one reader polls: are 200 points a second each too much for the database?

usage: writers.py [--seconds 30] [--writers 4] [--rate 200] [--single]

Each writer holds a claimed training run and does what a worker does with its stage's reports: once a tick, in one fenced
transaction, it extends the lease and applies the reports since the last tick. A step of training makes two, its point and its
progress. With --single each step gets a transaction of its own, the worst case, for information. The reader reads a job and
its points as the API does, every 10 ms. SQLite as the service sets it up, in a folder of its own.

Wanted: no lock error, and 99 of 100 transactions under 50 ms.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import quantiles
from threading import Barrier
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from app.db import make_engine, read_session, write_session
from app.jobs import repository as jobs
from app.jobs import stage_runs
from app.jobs.presentation import load_points, present
from app.jobs.spec import SPEC_VERSION, JobSpec
from app.jobs.states import Resource, Stage
from app.migration import migrate
from app.models import Job, StageRun
from app.settings import Settings
from app.storage import Storage
from worker.runner import TICK_SECONDS, Claim, Runner, keep

POLL_SECONDS = 0.01
WANTED_MS = 50.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--rate", type=int, default=200, help="points a second of each writer")
    parser.add_argument("--single", action="store_true", help="one transaction a point")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tunesmith-writers-") as folder:
        url = f"sqlite:///{Path(folder) / 'tunesmith.db'}"
        runs = make_runs(url, arguments.writers)
        claims = [Claim(run.id, run.fence, Path(folder)) for run in runs]
        spawning = multiprocessing.get_context("spawn")
        with spawning.Manager() as manager, spawning.Pool(len(runs) + 1) as pool:
            gate = manager.Barrier(len(runs) + 1)
            read = pool.apply_async(poll, (url, [run.job_id for run in runs], gate, arguments.seconds))
            written = [pool.apply_async(write, (url, claim, gate, arguments)) for claim in claims]
            result = summarize([each.get() for each in written], read.get(), arguments.seconds)
    print(json.dumps(result, indent=2))
    bad = result["lock_errors"] or (not arguments.single and result["transaction_ms"]["p99"] >= WANTED_MS)
    sys.exit(bool(bad))


def make_runs(url: str, count: int) -> list[StageRun]:
    """As many jobs in training, each claimed."""
    engine = make_engine(url)
    migrate(engine)
    spec = JobSpec.model_validate({"base_model": "model", "dataset": {"file": "file-1"}})
    with write_session(engine) as session:
        for _ in range(count):
            job = Job(base_model=spec.base_model, spec=spec.model_dump(mode="json"), spec_version=SPEC_VERSION)
            jobs.add(session, job, {})
            session.add(StageRun(job_id=job.id, stage=Stage.TRAIN, resource=Resource.GPU))
    with write_session(engine) as session:
        claimed = [stage_runs.claim(session, Resource.GPU, "wrk_bench", Settings().lease_seconds) for _ in range(count)]
    engine.dispose()
    return [run for run in claimed if run]


def write(url: str, claim: Claim, gate: Barrier, arguments: argparse.Namespace) -> dict[str, Any]:
    """Writes at the rate for as long as asked; what is late is caught up with. Times in seconds. One transaction before that,
    not counted, warms up what a worker has done before: it has claimed the run and begun it."""
    runner = Runner(make_engine(url), Settings(), Storage(claim.folder), "wrk_bench")
    tick = 1 / arguments.rate if arguments.single else TICK_SECONDS
    written, seconds, errors = 0, [], 0
    store(runner, claim, list(make_reports(0)))
    for elapsed in ticks(gate, arguments.seconds, tick):
        due = int(elapsed * arguments.rate)
        reports = [report for step in range(written + 1, due + 1) for report in make_reports(step)]
        taken, failed = timed(store, runner, claim, reports)
        seconds.append(taken)
        errors += failed
        written = written if failed else due
    return {"points": written, "seconds": seconds, "errors": errors}


def store(runner: Runner, claim: Claim, reports: list[dict[str, Any]]) -> None:
    with write_session(runner.engine) as session:
        assert keep(session, runner, claim, reports)[0], "the run was taken away"


def make_reports(step: int) -> Iterator[dict[str, Any]]:
    """As `worker.training.progress` reports a step."""
    now = time.time()
    point: dict[str, Any] = {"step": step, "time": now, "loss": 1.2345678, "eval_loss": None, "learning_rate": 2e-4}
    point |= {"grad_norm": 0.7654321, "tokens_per_second": 6410.2, "reserved_bytes": 2_338_324_480}
    yield {"kind": "metrics", "time": now, "points": [point]}
    counts: dict[str, Any] = {"step": step, "total_steps": 100_000, "percent": 12.34, "eta_seconds": 1227.5, "epoch": 0.9612}
    counts |= {"tokens_seen": 16384 * step, "trained_tokens": 12000 * step, "tokens_per_second": 6410.2, "message": None}
    yield {"kind": "progress", "time": now, **counts}


def poll(url: str, job_ids: list[str], gate: Barrier, seconds: float) -> dict[str, list[float]]:
    """Reads the jobs in turn: each, and every tenth time its points, too. Times in seconds."""
    engine = make_engine(url)
    taken: dict[str, list[float]] = {"job": [], "points": []}
    for number, _ in enumerate(ticks(gate, seconds, POLL_SECONDS)):
        job_id = job_ids[number % len(job_ids)]
        taken["job"].append(timed(read_job, engine, job_id)[0])
        if number % 10 == 0:
            taken["points"].append(timed(read_points, engine, job_id)[0])
    return taken


def read_job(engine: Engine, job_id: str) -> None:
    with read_session(engine) as session:
        present(session, jobs.get(session, job_id), "http://127.0.0.1:8000")


def read_points(engine: Engine, job_id: str) -> None:
    with read_session(engine) as session:
        load_points(session, job_id)


def ticks(gate: Barrier, seconds: float, pause: float) -> Iterator[float]:
    """The seconds since all came to the gate, after a pause each time, as a worker pauses between two looks at its stage."""
    gate.wait()
    start = time.monotonic()
    while time.monotonic() - start < seconds - pause:
        time.sleep(pause)
        yield time.monotonic() - start


def timed(call: Callable[..., None], *arguments: Any) -> tuple[float, bool]:
    """How long it took, and whether the database was locked for longer than its patience."""
    began = time.perf_counter()
    try:
        call(*arguments)
    except OperationalError:
        return time.perf_counter() - began, True
    return time.perf_counter() - began, False


def summarize(written: list[dict[str, Any]], read: dict[str, list[float]], seconds: float) -> dict[str, Any]:
    transactions = [taken for writer in written for taken in writer["seconds"]]
    return {
        "points_per_second": round(sum(writer["points"] for writer in written) / seconds),
        "transactions": len(transactions),
        "lock_errors": sum(writer["errors"] for writer in written),
        "transaction_ms": describe(transactions),
        "read_job_ms": describe(read["job"]),
        "read_points_ms": describe(read["points"]),
    }


def describe(seconds: list[float]) -> dict[str, float]:
    percentiles = quantiles(seconds, n=100, method="inclusive")
    return {
        "count": len(seconds), "p50": round(percentiles[49] * 1000, 1), "p99": round(percentiles[98] * 1000, 1),
        "max": round(max(seconds) * 1000, 1),
    }  # fmt: skip


if __name__ == "__main__":
    main()
