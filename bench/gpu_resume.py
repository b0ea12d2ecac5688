"""What interruptions cost on a GPU host, through `tunesmith up` and HTTP: numbers, memory, and the ladder of smaller settings.

usage: gpu_resume.py MODELS_DIR OUT.json [--model llama-3.2-1b-shape] [--steps 12] [--max-seq-length 2048] [--cap 2000000000]

MODELS_DIR holds a base model of make_model.py. For a trial without a GPU make it with --tiny, and give --max-seq-length 64.
One job of a batch of 8 rows with dropout is trained six times:

    whole       undisturbed
    repeated    undisturbed once more: the differences that the kernels make by themselves
    resumed     its stage process is killed (SIGKILL) after the first checkpoint: are the losses and the adapter the same?
    cancelled   in mid-training: seconds until the stage's process is gone and the GPU's memory is free
    orphaned    its worker is killed (SIGKILL): the same seconds
    capped      batch 4 without recomputing, under a memory cap that it cannot fit in: which rungs, and the losses at the end

Where the resumed losses differ, determinism.py says which kernel is not deterministic. Wanted: a difference of 0 or one with
a name; at most 10 s until the memory is free; the capped job succeeds with the same effective batch. Memory is watched
from a process of its own.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from gpu_job import write_rows
from memory_watch import MemoryWatch
from service import ROOT, running, wait_for_end

from client.api import Client

ENDED = ("succeeded", "failed", "cancelled")
STEP_SECONDS = 300
FREE_SECONDS = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models_dir", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="llama-3.2-1b-shape")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("--max-seq-length", type=int, default=2048)
    parser.add_argument("--cap", type=int, default=2_000_000_000, help="bytes")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tunesmith-resume-") as name, MemoryWatch() as memory:
        folder = Path(name)
        rows = folder / "rows.jsonl"
        write_rows(rows, tokens=arguments.steps * 9 * arguments.max_seq_length)
        flags = ["--models-dir", str(arguments.models_dir.resolve())]
        with running(folder / "data", *flags) as (client, _):
            spec = make_spec(arguments, client.upload(rows)["id"])
            whole = wait_for_end(client, client.submit(spec))
            results["whole"] = describe(client, whole)
            results["repeated"] = describe(client, wait_for_end(client, client.submit(spec)))
            results["repeated"] |= compare(results["repeated"], results["whole"])
            results["resumed"] = measure_resume(client, folder / "data", spec, results["whole"])
            results["cancelled"] = measure_cancel(client, folder / "data", spec, memory)
            results["orphaned"] = measure_dead_worker(client, folder / "data", spec, memory)
        if memory.is_watching:
            with running(folder / "capped", *flags, "--device-memory-bytes", str(arguments.cap)) as (client, _):
                results["capped"] = measure_ladder(client, make_spec(arguments, client.upload(rows)["id"]), results["whole"])
        if results["resumed"]["largest_difference"]:
            results["determinism"] = run_determinism(arguments)
    results["seconds"] = round(time.monotonic() - began, 1)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=2) + "\n")
    print_table(results)


def make_spec(arguments: argparse.Namespace, file: str) -> dict[str, Any]:
    return {
        "name": "resume",
        "base_model": arguments.model,
        "dataset": {"file": file},
        "lora": {"dropout": 0.05},
        "training": {
            "max_steps": arguments.steps,
            "max_seq_length": arguments.max_seq_length,
            "batch_size": 2,
            "gradient_accumulation": 4,
            "scheduler": "cosine",
        },
        "checkpoints": {"every_steps": arguments.every},
        "exports": [{"kind": "adapter"}],
    }


def describe(client: Client, job: dict[str, Any]) -> dict[str, Any]:
    """The losses by step, of the last attempt that reported each, and the adapter's hash."""
    names = {artifact["name"]: artifact["sha256"] for artifact in client.artifacts(job["id"])}
    return {
        "status": job["status"],
        "error": job["error"],
        "attempts": job["attempts"],
        "peak_reserved_bytes": (job["memory"] or {}).get("peak_reserved_bytes"),
        "losses": {str(point["step"]): point["loss"] for point in client.metrics(job["id"]) if point["loss"] is not None},
        "adapter_sha256": names.get("adapter/adapter_model.safetensors"),
    }


def measure_resume(client: Client, data: Path, spec: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    job = client.submit(spec)
    wait_for_checkpoint(client, job["id"])
    kill(find_stage(data, job["id"]))
    job = wait_for_end(client, job)
    found = describe(client, job)
    resumed_from = [event["data"]["step"] for event in client.events(job["id"]) if event["type"] == "job.checkpoint"]
    return found | compare(found, whole) | {"checkpoints": resumed_from}


def compare(found: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    """How far the losses are from those of the undisturbed run, step by step."""
    differences = {step: abs(found["losses"].get(step, float("inf")) - loss) for step, loss in whole["losses"].items()}
    worst = max(differences, key=lambda step: differences[step], default=None)
    return {
        "largest_difference": differences[worst] if worst else None,
        "at_step": worst,
        "same_adapter": found["adapter_sha256"] == whole["adapter_sha256"],
    }


def measure_cancel(client: Client, data: Path, spec: dict[str, Any], memory: MemoryWatch) -> dict[str, Any]:
    free = memory.free_bytes()
    job = client.submit(spec | {"training": spec["training"] | {"max_steps": 500}})
    wait_for_step(client, job["id"], 3)
    stage, used = find_stage(data, job["id"]), memory.free_bytes()
    began = time.monotonic()
    client.cancel(job["id"])
    found = measure_end(stage, memory, free, began) | {"taken_bytes": free - used}
    job = wait_for_end(client, job)
    return found | {"status": job["status"], "job_ended_seconds": round(time.monotonic() - began, 2)}


def measure_dead_worker(client: Client, data: Path, spec: dict[str, Any], memory: MemoryWatch) -> dict[str, Any]:
    free = memory.free_bytes()
    job = client.submit(spec | {"training": spec["training"] | {"max_steps": 500}})
    wait_for_step(client, job["id"], 3)
    stage, used = find_stage(data, job["id"]), memory.free_bytes()
    worker = next(worker for worker in client.workers() if "gpu" in worker["queues"])
    began = time.monotonic()
    os.kill(worker["pid"], signal.SIGKILL)
    found = measure_end(stage, memory, free, began) | {"taken_bytes": free - used}
    client.cancel(job["id"])
    return found | {"status": wait_for_end(client, job)["status"]}


def measure_end(stage: psutil.Process, memory: MemoryWatch, free: int, began: float) -> dict[str, Any]:
    """Seconds until the stage's process is gone, and until as much of the GPU is free as was before; null without a GPU."""
    gone = freed = None
    while time.monotonic() < began + FREE_SECONDS and (gone is None or (memory.is_watching and freed is None)):
        now = round(time.monotonic() - began, 2)
        if gone is None and (not stage.is_running() or stage.status() == psutil.STATUS_ZOMBIE):
            gone = now
        if freed is None and memory.is_watching and memory.free_bytes() >= free - memory.SLACK_BYTES:
            freed = now
        time.sleep(0.05)
    return {"process_gone_seconds": gone, "memory_free_seconds": freed}


def measure_ladder(client: Client, spec: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    wide = {"batch_size": 4, "gradient_accumulation": 2, "memory": "speed"}
    job = wait_for_end(client, client.submit(spec | {"training": spec["training"] | wide}))
    found = describe(client, job)
    training = job["spec"]["training"]
    rungs = [event["data"]["patch"] for event in client.events(job["id"]) if event["type"] == "job.retrying"]
    settled = {name: training[name] for name in ("batch_size", "gradient_accumulation", "memory")}
    batch = settled["batch_size"] * settled["gradient_accumulation"]
    return found | compare(found, whole) | {"rungs": rungs, "settled": settled, "effective_batch": batch}


def run_determinism(arguments: argparse.Namespace) -> Any:
    command = [sys.executable, ROOT / "bench" / "determinism.py", arguments.models_dir / arguments.model]
    done = subprocess.run([*command, str(arguments.max_seq_length)], cwd=ROOT, capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else {"error": done.stderr[-2000:]}


def wait_for_checkpoint(client: Client, job_id: str) -> None:
    wait_for(client, job_id, lambda: any(event["type"] == "job.checkpoint" for event in client.events(job_id)))


def wait_for_step(client: Client, job_id: str, step: int) -> None:
    wait_for(client, job_id, lambda: ((client.job(job_id)["progress"] or {}).get("step") or 0) >= step)


def wait_for(client: Client, job_id: str, condition: Any) -> None:
    deadline = time.monotonic() + STEP_SECONDS
    while not condition():
        job = client.job(job_id)
        if job["status"] in ENDED or time.monotonic() > deadline:
            raise SystemExit(f"the job is {job['status']}: {job['error']}")
        time.sleep(0.05)


def find_stage(data: Path, job_id: str) -> psutil.Process:
    """The process that trains this job."""
    folder = str(data.resolve() / "jobs" / job_id / "train")
    for process in psutil.process_iter(["cmdline"]):
        if any(part.startswith(folder) for part in process.info["cmdline"] or []):
            return process
    raise SystemExit(f"no process trains {job_id}")


def kill(process: psutil.Process) -> None:
    process.send_signal(signal.SIGKILL)


def print_table(results: dict[str, Any]) -> None:
    whole, resumed, capped = results["whole"], results["resumed"], results.get("capped")
    print(f"whole      {whole['status']}, {len(whole['losses'])} steps, peak {whole['peak_reserved_bytes']} bytes")
    print(f"repeated   {describe_difference(results['repeated'])}")
    print(f"resumed    {resumed['status']} in {resumed['attempts']} attempts, {describe_difference(resumed)}")
    for name in ("cancelled", "orphaned"):
        found = results[name]
        print(
            f"{name:10} process gone after {found['process_gone_seconds']} s, {found['taken_bytes']} bytes free after "
            f"{found['memory_free_seconds']} s"
        )
    if capped:
        print(
            f"capped     {capped['status']} in {capped['attempts']} attempts, settled on {capped['settled']}, effective batch",
            end="",
        )
        print(f" {capped['effective_batch']}, peak {capped['peak_reserved_bytes']} bytes, {describe_difference(capped)}")
    if "determinism" in results:
        print(f"determinism {json.dumps(results['determinism'])}")
    print(f"{results['seconds']} s in all")


def describe_difference(found: dict[str, Any]) -> str:
    same = "the same adapter" if found["same_adapter"] else "another adapter"
    return f"largest difference of a loss {found['largest_difference']} (step {found['at_step']}), {same}"


if __name__ == "__main__":
    main()
