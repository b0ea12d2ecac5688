"""What each quantization loses: every kind of GGUF of the built-in model after a small training, held against the merged model.

usage: fidelity.py [--steps 25] [--json FILE]

Starts `tunesmith up` on a data folder of its own, trains on the sample bookings, and exports the last checkpoint in every
quantization, verified on held-out bookings and on English prose, the paragraphs of docs/. Prints what the stage `verify` finds
of each file: nats per token from the merged model beside the limit, how often the likeliest token is the same, the file's
perplexity and the merged model's. Wanted: none above its limit, which fails the job.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

from service import ROOT, run_job, running

from app.jobs.spec import GgufExport
from client.api import Client

QUANTIZATIONS = get_args(GgufExport.model_fields["quantization"].annotation)
BOOKINGS = {"format": "auto", "max_samples": 2000, "validation_fraction": 0.02}
PROSE = {"format": "text", "validation_fraction": 0.5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tunesmith-fidelity-") as name:
        folder = Path(name)
        subprocess.run([sys.executable, ROOT / "examples" / "make_data.py", folder / "bookings.jsonl"], check=True)
        write_prose(folder / "prose.jsonl")
        with running(folder / "data") as (client, _):
            found = measure(client, folder, arguments.steps)
    print_table(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


def write_prose(path: Path) -> None:
    paragraphs = [text for page in sorted((ROOT / "docs").rglob("*.md")) for text in page.read_text().split("\n\n")]
    chosen = [text for text in paragraphs if len(text) > 300 and not text.startswith(("|", "    ", "```", "#"))]
    path.write_text("".join(json.dumps({"text": " ".join(text.split())}) + "\n" for text in chosen))


def measure(client: Client, folder: Path, steps: int) -> list[dict[str, Any]]:
    """One for each file: `quantization`, `data`, and its verification, see worker.verification.gguf_file."""
    files = {name: client.upload(folder / f"{name}.jsonl")["id"] for name in ("bookings", "prose")}
    spec = {
        "base_model": "smollm2-135m-instruct",
        "dataset": {"file": files["bookings"]} | BOOKINGS,
        "training": {"max_steps": steps, "max_seq_length": 128, "learning_rate": 1e-3},
        "checkpoints": {"every_steps": steps},
        "exports": [{"kind": "adapter"}],
    }
    trained = run_to_success(client, spec)
    [checkpoint] = [event["data"]["id"] for event in client.events(trained["id"]) if event["type"] == "job.checkpoint"]
    found = []
    for data, options in (("bookings", BOOKINGS), ("prose", PROSE)):
        exports = [{"kind": "gguf", "quantization": quantization} for quantization in QUANTIZATIONS]
        dataset = {"dataset": {"file": files[data]} | options}
        job = run_to_success(
            client, {"base_model": spec["base_model"], "from_checkpoint": checkpoint, "exports": exports} | dataset
        )
        for artifact in (artifact for artifact in job["artifacts"] if artifact["kind"] == "gguf"):
            quantization = artifact["name"].removesuffix(".gguf").rpartition("-")[2]
            found.append({"quantization": quantization, "data": data} | artifact["verification"])
            print(json.dumps(found[-1]), flush=True)
    return found


def run_to_success(client: Client, spec: dict) -> dict:
    job = run_job(client, spec)
    if job["status"] != "succeeded":
        raise SystemExit(f"the job {job['status']}: {job['error']}")
    return job


def print_table(found: list[dict[str, Any]]) -> None:
    columns = ("quantization", "data", "kl", "limit", "top1", "perplexity", "reference", "tokens", "adapter")
    print(" ".join(f"{column:>12}" for column in columns))
    for quantization in QUANTIZATIONS:
        for row in (row for row in found if row["quantization"] == quantization):
            cells = [quantization, row["data"], f"{row['kl']:.5f}", row["most_kl"], f"{row['top1']:.3f}"]
            cells += [f"{row['perplexity']:.3f}", f"{row['reference_perplexity']:.3f}", row["tokens"], f"{row['adapter']:.3f}"]
            print(" ".join(f"{cell!s:>12}" for cell in cells))


if __name__ == "__main__":
    main()
