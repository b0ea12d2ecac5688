"""What the service costs: a job over HTTP against the same work in one hand-written script, in turn, in one run.

usage: overhead.py [--steps 8 50] [--pairs 1]

Starts `tunesmith up` on a data folder of its own, with a warm built-in model and the sample data of examples/, then for
each number of steps runs the script and the job, the script first. Prints wall and CPU seconds of both, the difference and
the ratio. Wanted: at most 15 s more at demo size, at most 1.05x at 50 steps. CPU seconds of the service are those of its
whole process tree during the job.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from service import ROOT, run_job, running

from client.api import Client

CONVERTER_DIR = Path(sys.prefix) / "share" / "tunesmith" / "llama.cpp"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 50])
    parser.add_argument("--pairs", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tunesmith-overhead-") as name:
        folder = Path(name)
        data = folder / "rows.jsonl"
        subprocess.run([sys.executable, ROOT / "examples" / "make_data.py", data], check=True)
        with running(folder / "data") as (client, service):
            file = client.upload(data)
            model = warm_up(client, file["id"])
            for steps in arguments.steps:
                for pair in range(arguments.pairs):
                    compare(folder / f"{steps}-{pair}", client, service, file["id"], data, model, steps)


def make_spec(file: str, steps: int) -> dict:
    return {
        "base_model": "smollm2-135m-instruct",
        "dataset": {"file": file},
        "training": {"max_steps": steps, "max_seq_length": 128, "learning_rate": 1e-3},
        "exports": [{"kind": "adapter"}, {"kind": "merged"}, {"kind": "gguf", "quantization": "q8_0"}],
    }


def warm_up(client: Client, file: str) -> Path:
    """One job of one step, so that neither side pays for the first start of anything. Gives the base model's folder."""
    run_to_success(client, make_spec(file, 1) | {"exports": [{"kind": "adapter"}]})
    cache = Path(os.environ.get("TUNESMITH_CACHE_DIR", Path.home() / ".cache" / "tunesmith"))
    return next(path.parent for path in cache.rglob("config.json") if "smollm2-135m-instruct" in str(path))


def run_to_success(client: Client, spec: dict) -> dict:
    job = run_job(client, spec)
    if job["status"] != "succeeded":
        raise SystemExit(f"the job ended as {job['status']}: {job['error']}")
    return job


def compare(folder: Path, client: Client, service: psutil.Popen, file: str, data: Path, model: Path, steps: int) -> None:
    folder.mkdir()
    spec = make_spec(file, steps)
    (folder / "job.json").write_text(json.dumps(spec))
    started, before = time.monotonic(), os.times()
    with (folder / "script.log").open("w") as log:
        command = [sys.executable, ROOT / "bench" / "handwritten.py", model, data, folder / "job.json", folder / "script"]
        subprocess.run(command, check=True, env=os.environ | {"CONVERTER_DIR": str(CONVERTER_DIR)}, stdout=log, stderr=log)
    after = os.times()
    script_wall = time.monotonic() - started
    script_cpu = after.children_user + after.children_system - before.children_user - before.children_system

    started, before_cpu = time.monotonic(), tree_cpu(service)
    job = run_to_success(client, spec)
    job_wall, job_cpu = time.monotonic() - started, tree_cpu(service) - before_cpu
    stages = ", ".join(f"{stage['name']} {stage['duration_seconds']:.1f}" for stage in job["stages"])
    print(
        f"{steps:4d} steps: script {script_wall:.1f} s (cpu {script_cpu:.0f}), job {job_wall:.1f} s (cpu {job_cpu:.0f}), "
        f"difference {job_wall - script_wall:+.1f} s, ratio {job_wall / script_wall:.3f}  [{stages}]",
        flush=True,
    )


def tree_cpu(service: psutil.Popen) -> float:
    """CPU seconds of the service's processes, those that have ended and were waited for included."""
    total = 0.0
    for process in [service, *service.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


if __name__ == "__main__":
    main()
