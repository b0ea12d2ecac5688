"""schemathesis over the whole published schema, in all its phases: as an administrator, as another tenant, and without a key.

    python bench/fuzz.py [--cases 50000] [--examples 100] [--seed 1] [--output FILE]

Each round starts from a service with something of everything in it, and has another seed. It ends with status 1 at a server
error, an answer that the schema does not document, or one that is not what the schema says. Numbers bound it, not seconds.
"""

import argparse
import hashlib
import json
import math
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

sys.path.insert(0, str(Path(__file__).parents[1]))

from app import blobs
from app.db import make_engine, write_session
from app.jobs import repository, results, stage_runs
from app.jobs.states import JobStatus, Resource
from app.models import Artifact, Worker
from app.settings import Settings
from app.storage import Storage

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance"
)
MODEL = "smollm2-135m-instruct"
ROW = b'{"messages": [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "2."}]}\n'
SHARE_OF_KNOWN = 0.6
"""How often a parameter of the path is something that is there."""
TIMEOUT_SECONDS = 120
"""A slow machine's answer is none that fails."""
LARGE_BODIES = ("/v1/jobs", "/v1/fine_tuning/jobs", "/v1/files")
"""Their coverage is two thirds of all operations'."""
SCENARIOS_PER_EXAMPLE = 0.5
"""Sequences of up to six requests, for each example of an operation."""


@contextmanager
def serve(folder: Path, key: str | None) -> Iterator[str]:
    """A server on an empty data folder, without the hub; of workers, only what they would have told of themselves."""
    with socket.socket() as holder:  # nobody else is given the port meanwhile
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
        settings = {"DATA_DIR": str(folder), "PORT": str(port), "BOOTSTRAP_KEY": key or ""}
        settings |= {"BROKER_URL": "memory://", "REQUESTS_PER_MINUTE": "0", "LEASE_SECONDS": "86400"}
        environment = os.environ | {f"TUNESMITH_{name}": value for name, value in settings.items()} | {"HF_HUB_OFFLINE": "1"}
        with (folder / "api.log").open("wb") as log:
            process = subprocess.Popen([sys.executable, "-m", "app.main"], env=environment, stdout=log, stderr=log)
        url = f"http://127.0.0.1:{port}"
        try:
            while not answers(url):
                if process.poll() is not None:
                    raise SystemExit((folder / "api.log").read_text())
                time.sleep(0.05)
            yield url
        finally:
            process.terminate()
            process.wait()


def answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/healthz").status_code == 200
    except httpx2.TransportError:
        return False


def fill(http: httpx2.Client, folder: Path) -> dict[str, list[str]]:
    """Makes something of everything for the client's tenant; answers the values of path parameters, by name."""
    files = [upload(http) for _ in range(3)]
    jobs = [submit(http, files[0]) for _ in range(5)]
    http.post(f"/v1/jobs/{jobs[0]}/cancel").raise_for_status()
    http.post(f"/v1/jobs/{jobs[1]}/pause").raise_for_status()
    http.put("/v1/secrets/hf", json={"value": "hf_x"}).raise_for_status()
    succeed(jobs[2], folder)
    models = [model["id"] for model in http.get("/v1/models").raise_for_status().json()["data"]]
    return {"job_id": jobs, "file_id": files, "model": models, "name": ["hf", "gguf/model-q8_0.gguf"]}


def upload(http: httpx2.Client) -> str:
    answer = http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("rows.jsonl", ROW)})
    return answer.raise_for_status().json()["id"]


def submit(http: httpx2.Client, file_id: str) -> str:
    spec = {"base_model": MODEL, "dataset": {"file": file_id}, "labels": {"team": "nlp"}}
    return http.post("/v1/jobs", json=spec).raise_for_status().json()["id"]


def succeed(job_id: str, folder: Path) -> None:
    """What workers would have done."""
    settings = Settings(data_dir=folder)
    storage, engine = Storage(settings.root), make_engine(settings.database)
    content = b"GGUF" + secrets.token_bytes(1000)
    sha256 = hashlib.sha256(content).hexdigest()
    with write_session(engine) as session:
        session.add(Worker(host="here", pid=1, queues=["gpu", "cpu"]))  # /readyz asks for one of each
        job = repository.get(session, job_id)
        while (run := stage_runs.claim(session, Resource.CPU, "wrk_fuzz", 60)) is not None and run.job_id != job_id:
            continue
        repository.set_status(session, job, JobStatus.RUNNING, "The job started.")
        blobs.keep(session, sha256, len(content))
        storage.blob(sha256).parent.mkdir(parents=True, exist_ok=True)
        storage.blob(sha256).write_bytes(content)
        session.add(
            Artifact(tenant_id=job.tenant_id, job_id=job_id, name="gguf/model-q8_0.gguf", kind="gguf", blob_sha256=sha256)
        )
        results.write_results(session, storage, job)
        repository.set_status(session, job, JobStatus.SUCCEEDED, "The job succeeded.")
    engine.dispose()


@dataclass
class Extent:
    """How much a round asks: examples of each operation, and which operations' every limit of every field."""

    examples: int
    seed: int
    coverage: bool = True
    large_bodies: bool = True


def write_config(folder: Path, known: dict[str, list[str]], key: str | None, extent: Extent) -> Path:
    lines = [f'headers = {{ Authorization = "Bearer {key}" }}'] if key else []
    lines.insert(0, f"request-timeout = {TIMEOUT_SECONDS}")
    lines += ["[generation]", 'database = "none"']  # hypothesis would keep and sort what it has seen: a third of the time
    lines += ["[phases.coverage]", f"enabled = {str(extent.coverage).lower()}"]
    lines += ["[phases.stateful.generation]", f"max-examples = {math.ceil(extent.examples * SCENARIOS_PER_EXAMPLE)}"]
    for name, values in known.items():
        lines += [f"[dictionaries.{name}]", f"values = {json.dumps(values)}"]
    lines.append("[parameters]")
    lines += [f'"path.{name}" = {{ dictionary = "{name}", probability = {SHARE_OF_KNOWN} }}' for name in known]
    lines += ["[[operations]]", 'include-path = "/v1/jobs/{job_id}/events"']
    lines += ["[operations.parameters]", '"query.stream" = false']
    for path in () if extent.large_bodies else LARGE_BODIES:
        lines += ["[[operations]]", f'include-path = "{path}"', "[operations.phases.coverage]", "enabled = false"]
    config = folder / "schemathesis.toml"
    config.write_text("\n".join(lines) + "\n")
    return config


def start(url: str, folder: Path, known: dict[str, list[str]], key: str | None, extent: Extent) -> subprocess.Popen:
    """One caller's run, with its report in the folder."""
    folder.mkdir()
    command = [Path(sys.executable).with_name("schemathesis"), "--config-file", write_config(folder, known, key, extent), "run"]
    command += [
        f"{url}/openapi.json",
        "--checks",
        CHECKS,
        "--max-examples",
        extent.examples,
        "--seed",
        extent.seed,
        "--no-shrink",
    ]
    command += ["--continue-on-failure", "--suppress-health-check", "all", "--warnings", "off"]
    command += ["--report", "json", "--report-json-path", folder / "report.json"]
    with (folder / "output.txt").open("wb") as output:
        return subprocess.Popen([str(part) for part in command], stdout=output, stderr=output, cwd=folder)


def run_round(folder: Path, extent: Extent) -> tuple[dict[str, int], list[Path]]:
    """All callers at once against one service; answers the cases of each, and the outputs of those that found something."""
    data, key = folder / "data", f"tsk_{secrets.token_hex(16)}"
    data.mkdir()
    cases, bad = {}, []
    with serve(data, key) as url, caller(url, key) as admin:
        made: Any = admin.post("/v1/keys", json={"tenant": "other", "scopes": ["read", "write"]}).raise_for_status().json()
        with caller(url, made["key"]) as tenant:
            known = {"admin": fill(admin, data), "tenant": fill(tenant, data)}
        keys = {"admin": key, "tenant": made["key"], "nobody": None}
        running = {name: start(url, folder / name, known.get(name, known["admin"]), keys[name], extent) for name in keys}
        for name, process in running.items():
            process.wait()
            report = json.loads((folder / name / "report.json").read_text())
            cases[name] = report["test_cases"]["generated"]
            if report["failures"] or report["errors"] or process.returncode:
                bad.append(folder / name / "output.txt")
    return cases, bad


def caller(url: str, key: str) -> httpx2.Client:
    return httpx2.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=TIMEOUT_SECONDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=50_000)
    parser.add_argument("--examples", type=int, default=100, help="of each operation, a round")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    began, total = time.monotonic(), 0
    rounds: list[dict[str, Any]] = []
    while total < options.cases:
        extent = Extent(options.examples, options.seed + len(rounds), coverage=not rounds)
        with tempfile.TemporaryDirectory() as folder:
            cases, bad = run_round(Path(folder), extent)
            total += sum(cases.values())
            rounds.append({"seed": extent.seed, "cases": cases, "bad": len(bad)})
            print(f"seed {extent.seed}: {cases}, {total} in all", flush=True)
            for output in bad:
                print(f"\n{output.parent.name}:\n{output.read_text()}")
        if options.output:
            summary = {
                "cases": total,
                "seconds": round(time.monotonic() - began),
                "checks": CHECKS.split(","),
                "rounds": rounds,
            }
            options.output.write_text(json.dumps(summary, indent=1) + "\n")
        if bad:
            sys.exit(1)


if __name__ == "__main__":
    main()
