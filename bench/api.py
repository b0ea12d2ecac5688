"""What a request costs beside a bare FastAPI `def` hello, in CPU time of the server's process.

    python bench/api.py [--pairs 30] [--requests 50] [--out docs/measurements/requests.json]

A pair is some requests to the one, fewer of the dear ones, and then some to the other; a ratio is the median of the pairs'.
100 jobs wait; the job that is asked for is one of them, so its place in the queue is counted, too, or one that has succeeded.
Wanted: a GET of a job at no more than four times the hello. Linux only: nothing else tells another process's time so finely.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx2
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

import fuzz

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
JOBS = 100
WANTED = 4.0
HELD_TO_IT = ("GET a waiting job", "GET a job that succeeded")
Call = Callable[[], httpx2.Response]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.environ["TUNESMITH_REAPER_SECONDS"] = "3600"
    with tempfile.TemporaryDirectory() as name, fuzz.serve(Path(name), None) as url, hello() as (plain, bare):
        port = int(url.rpartition(":")[2])
        server = next(c.pid for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port)
        with httpx2.Client(base_url=url) as http:
            result = {}
            for kind, (call, dearer) in prepare(http, Path(name)).items():
                own = (server, call, max(1, options.requests // dearer))
                result[kind] = compare(own, (bare, plain, options.requests), options.pairs)
                print(f"{kind}: {result[kind]}", flush=True)
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(any(result[kind]["ratio"] > WANTED for kind in HELD_TO_IT))


@contextmanager
def hello() -> Iterator[tuple[Call, int]]:
    with (
        httpx2.Client(base_url=f"http://127.0.0.1:{HELLO_PORT}") as http,
        subprocess.Popen([sys.executable, "-c", HELLO, str(HELLO_PORT)]) as process,
    ):
        while not is_up(http):
            time.sleep(0.05)
        yield lambda: http.get("/"), process.pid
        process.terminate()


def is_up(http: httpx2.Client) -> bool:
    try:
        return http.get("/").is_success
    except httpx2.TransportError:
        return False


def prepare(http: httpx2.Client, folder: Path) -> dict[str, tuple[Call, int]]:
    """Each kind of call, and how many times as dear as the cheapest it is, roughly."""
    file_id = fuzz.upload(http)
    done, waiting = (fuzz.submit(http, file_id) for _ in range(2))
    fuzz.succeed(done, folder)
    for _ in range(JOBS - 1):
        fuzz.submit(http, file_id)
    spec = {"base_model": fuzz.MODEL, "dataset": {"file": file_id}}
    return {
        "GET a waiting job": (lambda: http.get(f"/v1/jobs/{waiting}"), 1),
        "GET a job that succeeded": (lambda: http.get(f"/v1/jobs/{done}"), 1),
        "GET 100 jobs": (lambda: http.get("/v1/jobs?limit=100"), 10),
        "POST a job": (lambda: http.post("/v1/jobs", json=spec), 5),
    }


def compare(own: tuple[int, Call, int], bare: tuple[int, Call, int], pairs: int) -> dict[str, Any]:
    spend(*own)
    found = [(spend(*own), spend(*bare)) for _ in range(pairs)]
    return {
        "ms": round(median(cost for cost, _ in found), 3),
        "hello_ms": round(median(cost for _, cost in found), 3),
        "ratio": round(median(cost / base for cost, base in found), 2),
    }


def spend(server: int, call: Call, count: int) -> float:
    """CPU milliseconds of the server for one call."""
    before = read_clock(server)
    for _ in range(count):
        call().raise_for_status()
    return 1000 * (read_clock(server) - before) / count


def read_clock(process: int) -> float:
    """CPU seconds of all threads of a process, to the nanosecond: the id of its clock is made as the kernel makes it."""
    return time.clock_gettime((~process << 3) | 2)


if __name__ == "__main__":
    main()
