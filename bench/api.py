"""What a request costs beside a bare FastAPI `def` hello, and whether a thousand open event streams stay whole and small.

    python bench/api.py [--pairs 5] [--requests 300] [--streams 1000] [--seconds 600]

CPU seconds are those of the server's process; a pair is some requests to the one and then to the other. Wanted: a GET of a job
at no more than four times the hello; of the streams no dropped event, and a resident memory that does not grow.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import httpx2
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

import fuzz

from app.db import make_engine, write_session
from app.jobs import repository
from app.jobs.states import EventType
from app.settings import Settings

HELLO = """
import sys, uvicorn
from fastapi import FastAPI
app = FastAPI()
@app.get("/")
def hello():
    return {"hello": "world"}
uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", access_log=False)
"""
HELLO_PORT = 8767
EVENT_SECONDS = 5.0
POLLS_A_SECOND = 100


def spend(process: psutil.Process, call: Callable[[], httpx2.Response], count: int) -> float:
    """CPU milliseconds of the server for one call."""
    before = process.cpu_times()
    for _ in range(count):
        call().raise_for_status()
    after = process.cpu_times()
    return 1000 * (after.user + after.system - before.user - before.system) / count


def compare(url: str, server: psutil.Process, pairs: int, requests: int) -> str:
    """Prints the cost of each kind of call; answers the id of a job."""
    with httpx2.Client(base_url=url) as http, httpx2.Client(base_url=f"http://127.0.0.1:{HELLO_PORT}") as plain:
        file_id = fuzz.upload(http)
        jobs = [fuzz.submit(http, file_id) for _ in range(100)]
        spec = {"base_model": fuzz.MODEL, "dataset": {"file": file_id}}
        kinds: dict[str, tuple[Callable[[], httpx2.Response], int]] = {
            "GET a job": (lambda: http.get(f"/v1/jobs/{jobs[0]}"), requests),
            "GET 100 jobs": (lambda: http.get("/v1/jobs?limit=100"), max(1, requests // 20)),
            "POST a job": (lambda: http.post("/v1/jobs", json=spec), max(1, requests // 5)),
        }
        with subprocess.Popen([sys.executable, "-c", HELLO, str(HELLO_PORT)]) as hello:
            while not reachable(plain):
                time.sleep(0.05)
            other = psutil.Process(hello.pid)
            for name, (call, count) in kinds.items():
                found = [(spend(server, call, count), spend(other, lambda: plain.get("/"), requests)) for _ in range(pairs)]
                own, bare = median(cost for cost, _ in found), median(cost for _, cost in found)
                ratio = median(cost / base for cost, base in found)
                print(f"{name}: {own:.2f} ms of CPU, hello {bare:.2f} ms, median ratio {ratio:.1f}", flush=True)
            hello.terminate()
    return jobs[0]


def reachable(http: httpx2.Client) -> bool:
    try:
        return http.get("/").is_success
    except httpx2.TransportError:
        return False


async def follow(http: httpx2.AsyncClient, job_id: str, numbers: list[int]) -> None:
    """Notes the numbers of the warnings that the stream brings."""
    async with http.stream("GET", f"/v1/jobs/{job_id}/events?stream=true") as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: ") and '"number":' in line:
                numbers.append(int(line.partition('"number":')[2].partition("}")[0]))


async def poll(http: httpx2.AsyncClient, job_id: str, until: float) -> None:
    while time.monotonic() < until:
        began = time.monotonic()
        await http.get(f"/v1/jobs/{job_id}")
        await asyncio.sleep(max(0.0, 1 - (time.monotonic() - began)))


async def watch(url: str, data: Path, server: psutil.Process, job_id: str, streams: int, seconds: float) -> bool:
    """Whether every stream brought every event, and the memory was flat: within a tenth of that at a quarter of the time."""
    settings = Settings(data_dir=data)
    engine = make_engine(settings.database)
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    received: list[list[int]] = [[] for _ in range(streams)]
    resident: list[int] = []
    written = 0

    def write(number: int) -> None:
        with write_session(engine) as session:
            job = repository.get(session, job_id)
            job.progress = {"step": number, "total_steps": 1_000_000}
            if number % int(EVENT_SECONDS) == 0:
                repository.record_event(session, job, EventType.JOB_WARNING, "a warning", {"number": number})

    async with httpx2.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
        following = [asyncio.create_task(follow(http, job_id, numbers)) for numbers in received]
        await asyncio.sleep(5)
        until = time.monotonic() + seconds
        polling = [asyncio.create_task(poll(http, job_id, until)) for _ in range(POLLS_A_SECOND)]
        while time.monotonic() < until:
            await asyncio.to_thread(write, written)
            written += 1
            resident.append(server.memory_info().rss)
            await asyncio.sleep(1)
        await asyncio.gather(*polling)
        (await http.post(f"/v1/jobs/{job_id}/cancel")).raise_for_status()
        await asyncio.gather(*following)
    wanted = [number for number in range(written) if number % int(EVENT_SECONDS) == 0]
    missed = sum(numbers != wanted for numbers in received)
    first, last = resident[len(resident) // 4] / 2**20, resident[-1] / 2**20
    memory = f"resident {first:.0f}, then {last:.0f} MiB"
    print(f"{streams} streams, {written} s: {len(wanted)} events, {missed} streams missed any; {memory}")
    return missed == 0 and last <= 1.1 * first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=600)
    options = parser.parse_args()
    os.environ["TUNESMITH_REAPER_SECONDS"] = "3600"
    with tempfile.TemporaryDirectory() as folder, fuzz.serve(Path(folder), None) as url:
        port = int(url.rpartition(":")[2])
        [server] = {c.pid for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port}
        process = psutil.Process(server)
        job_id = compare(url, process, options.pairs, options.requests)
        whole = asyncio.run(watch(url, Path(folder), process, job_id, options.streams, options.seconds))
    sys.exit(not whole)


if __name__ == "__main__":
    main()
