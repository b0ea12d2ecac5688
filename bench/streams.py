"""A thousand open event streams and a hundred polls a second on one service while a job reports progress.

    python bench/streams.py [--streams 1000] [--polls 100] [--minutes 10] [--out docs/measurements/event-streams.json]

A second process writes as a worker does: in one fenced transaction a second the lease, the points and the progress, and every
second also a warning, which is an event with an id. At the end the job succeeds, and so every stream ends by itself. Wanted: of
every stream all events, once and in order, and a resident memory that does not grow: what it is at the end is within a tenth of
what it was after a quarter of the time.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

import httpx2
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

import fuzz
import writers

from app.db import make_engine, write_session
from app.jobs import repository, stage_runs
from app.jobs.states import JobStatus, Stage, StageStatus
from app.settings import Settings
from app.storage import Storage
from worker.runner import Claim, Runner

STEPS_A_SECOND = 5
MOST_GROWTH = 1.1
OPENING_AT_A_TIME = 50
POLLERS = 20


@dataclass
class Stream:
    """What one client was sent: the numbers of the warnings, how many moments of progress, and whether the end came."""

    numbers: list[int] = field(default_factory=list)
    moments: int = 0
    ended: bool = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--polls", type=int, default=100, help="a second, of all pollers together")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    allow_files(options.streams + 200)
    os.environ["TUNESMITH_REAPER_SECONDS"] = "3600"  # there are no workers whose death it could find
    with tempfile.TemporaryDirectory() as folder, fuzz.serve(Path(folder), None) as url:
        result = asyncio.run(measure(url, Path(folder), options))
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    flat = result["resident_mib"]["end"] <= MOST_GROWTH * result["resident_mib"]["quarter"]
    sys.exit(not flat or result["streams_not_whole"] > 0 or result["polls"]["failed"] > 0)


def allow_files(count: int) -> None:
    """A connection is a file on either side."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count:
        raise SystemExit(f"{count} open files are needed, and {hard} are allowed: `ulimit -Hn {count}` as root, or LimitNOFILE")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))


async def measure(url: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    port = int(url.rpartition(":")[2])
    server = psutil.Process(next(c.pid for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port))
    with httpx2.Client(base_url=url) as http:
        job_id = fuzz.submit(http, fuzz.upload(http))
    seconds, opening = 60 * options.minutes, asyncio.Semaphore(OPENING_AT_A_TIME)
    streams = [Stream() for _ in range(options.streams)]
    open_now = [asyncio.Event() for _ in streams]
    following = [
        asyncio.create_task(follow(port, job_id, stream, opening, opened))
        for stream, opened in zip(streams, open_now, strict=True)
    ]
    began = time.monotonic()
    await asyncio.gather(*(opened.wait() for opened in open_now))
    print(f"{options.streams} streams open after {time.monotonic() - began:.1f} s", flush=True)
    writer = multiprocessing.get_context("spawn").Process(target=write, args=(folder, job_id, seconds))
    writer.start()
    taken: list[float] = []
    failed: list[str] = []
    until, before = time.monotonic() + seconds, server.cpu_times()
    polling = [asyncio.create_task(poll(port, job_id, until, POLLERS / options.polls, taken, failed)) for _ in range(POLLERS)]
    resident = []
    while time.monotonic() < until:
        resident.append(server.memory_info().rss / 2**20)
        await asyncio.sleep(1)
    after = server.cpu_times()
    await asyncio.gather(*polling)
    await asyncio.to_thread(writer.join)
    await asyncio.wait(following, timeout=60)
    written = int((folder / "written").read_text())
    return summarize(streams, written, taken, failed, resident, after.user + after.system - before.user - before.system) | {
        "streams": options.streams,
        "seconds": seconds,
        "descriptors_allowed": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    }


async def follow(port: int, job_id: str, stream: Stream, opening: asyncio.Semaphore, opened: asyncio.Event) -> None:
    """By hand, for a client that costs next to nothing: each event is a chunk whose lines are whole."""
    async with opening:
        reader, connection = await asyncio.open_connection("127.0.0.1", port)
        connection.write(f"GET /v1/jobs/{job_id}/events?stream=true HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert (await reader.readline()).split()[1] == b"200"
    opened.set()
    kind = b""
    while line := await reader.readline():
        if line.startswith(b"event: "):
            kind = line[7:].strip()
        elif line.startswith(b"data: ") and kind == b"job.warning":
            stream.numbers.append(json.loads(line[6:])["data"]["number"])
        elif line.startswith(b"data: "):
            stream.moments += kind == b"stage.progress"
            stream.ended |= kind == b"job.succeeded"
        elif line == b"0\r\n":
            break
    connection.close()


async def poll(port: int, job_id: str, until: float, pause: float, taken: list[float], failed: list[str]) -> None:
    reader, connection = await asyncio.open_connection("127.0.0.1", port)
    due = time.monotonic()
    while due < until:
        began = time.monotonic()
        connection.write(f"GET /v1/jobs/{job_id} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split()[0]))
        taken.append(time.monotonic() - began)
        if head.split()[1] != b"200":
            failed.append(head.split()[1].decode())
        due += pause
        await asyncio.sleep(max(0.0, due - time.monotonic()))
    connection.close()


def write(folder: Path, job_id: str, seconds: float) -> None:
    """What a worker does with a training that reports, through the worker's own code, and then the job's end."""
    settings = Settings(data_dir=folder, broker_url="memory://")
    runner = Runner(make_engine(settings.database), settings, Storage(settings.root), "wrk_bench")
    with write_session(runner.engine) as session:
        job = repository.get(session, job_id)
        claimed = None
        while claimed is None or claimed.job_id != job_id:  # the uploaded file waits for its inspection, too
            claimed = stage_runs.claim(session, Stage.PREPARE.resource, "wrk_bench", settings.lease_seconds)
            assert claimed
        repository.set_status(session, job, JobStatus.RUNNING, "The job started.")
        claim = Claim(claimed.id, claimed.fence, folder)
    start, number = time.monotonic(), 0
    while (elapsed := time.monotonic() - start) < seconds:
        due = int(elapsed)
        reports = [report for step in range(STEPS_A_SECOND) for report in writers.make_reports(STEPS_A_SECOND * number + step)]
        reports.append({"kind": "warning", "message": "A warning.", "number": number})
        writers.store(runner, claim, reports)
        number += 1
        time.sleep(max(0.0, start + due + 1 - time.monotonic()))
    with write_session(runner.engine) as session:
        stage_runs.finish(session, claim.run_id, claim.fence, StageStatus.SUCCEEDED)
        repository.set_status(session, repository.get(session, job_id), JobStatus.SUCCEEDED, "The job succeeded.")
    (folder / "written").write_text(str(number))


def summarize(
    streams: list[Stream], written: int, taken: list[float], failed: list[str], resident: list[float], cpu: float
) -> dict[str, Any]:
    wanted = list(range(written))
    missing = sum(len(set(wanted) - set(stream.numbers)) for stream in streams)
    twice = sum(len(stream.numbers) - len(set(stream.numbers)) for stream in streams)
    disordered = sum(stream.numbers != sorted(stream.numbers) for stream in streams)
    percentiles = quantiles(taken, n=100, method="inclusive")
    return {
        "events_of_each_stream": written,
        "events_received": sum(len(stream.numbers) for stream in streams),
        "missing": missing,
        "twice": twice,
        "streams_out_of_order": disordered,
        "streams_without_their_end": sum(not stream.ended for stream in streams),
        "streams_not_whole": sum(stream.numbers != wanted or not stream.ended for stream in streams),
        "progress_of_each_stream": {
            "least": min(stream.moments for stream in streams),
            "most": max(stream.moments for stream in streams),
        },
        "polls": {
            "count": len(taken),
            "failed": len(failed),
            "p50_ms": round(1000 * percentiles[49], 1),
            "p99_ms": round(1000 * percentiles[98], 1),
        },
        "resident_mib": {
            "start": round(resident[0]),
            "quarter": round(resident[len(resident) // 4]),
            "middle": round(resident[len(resident) // 2]),
            "end": round(resident[-1]),
        },
        "cpu_of_the_server": round(cpu / len(resident), 2),
    }


if __name__ == "__main__":
    main()
