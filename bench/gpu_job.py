"""A job of the Llama-3.2-1B shape on a GPU host, from `tunesmith up` over HTTP to the GGUF: does it fit, and how fast is it?

usage: gpu_job.py MODELS_DIR OUT [--precisions fp16 bf16] [--steps 20]

MODELS_DIR holds a folder `llama-3.2-1b-shape` made by make_model.py with the built-in model's tokenizer. Rows are random
words in conversations of FineTome-like lengths (log-normal, median about 365 tokens), packed into rows of 2048; batch 2 x 2048,
accumulation 4. For each precision the job's JSON goes to OUT/<precision>.json. Wanted: peak reserved <= 2.2 GiB.
"""

import argparse
import json
import random
import tempfile
from pathlib import Path

from service import run_job, running

LIMIT_GIB = 2.2
WORDS = ("the", "model", "learns", "what", "it", "is", "shown", "and", "every", "answer", "gets", "checked", "by", "people")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models_dir", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--precisions", nargs="+", default=["fp16", "bf16"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--max-seq-length", type=int, default=2048)
    parser.add_argument("--model", default="llama-3.2-1b-shape")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tunesmith-gpu-") as folder:
        rows = Path(folder) / "rows.jsonl"
        write_rows(rows, tokens=arguments.steps * 9 * arguments.max_seq_length)
        with running(Path(folder) / "data", "--models-dir", str(arguments.models_dir)) as (client, _):
            file = client.upload(rows)["id"]
            for precision in arguments.precisions:
                job = run_job(client, make_spec(arguments, file, precision))
                (arguments.out / f"{precision}.json").write_text(json.dumps(job, indent=2) + "\n")
                print_row(precision, job)


def write_rows(path: Path, *, tokens: int) -> None:
    """Conversations of one question and one answer until there are about `tokens` tokens; a word is about one token."""
    random.seed(3407)
    with path.open("w") as file:
        while tokens > 0:
            length = max(16, min(1900, int(random.lognormvariate(5.9, 0.8))))
            question = " ".join(random.choices(WORDS, k=length // 4))
            answer = " ".join(random.choices(WORDS, k=length - length // 4))
            row = {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}
            file.write(json.dumps(row) + "\n")
            tokens -= length + 40


def make_spec(arguments: argparse.Namespace, file: str, precision: str) -> dict:
    return {
        "name": f"llama-3.2-1b-shape-{precision}",
        "base_model": arguments.model,
        "dataset": {"file": file},
        "training": {"max_steps": arguments.steps, "max_seq_length": arguments.max_seq_length, "precision": precision},
        "exports": [{"kind": "adapter"}, {"kind": "merged"}, {"kind": "gguf", "quantization": "q8_0"}],
    }


def print_row(precision: str, job: dict) -> None:
    memory, progress = job["memory"] or {}, job["progress"] or {}
    gib = {key: (memory.get(f"{key}_reserved_bytes") or 0) / 2**30 for key in ("start", "peak", "training")}
    stages = ", ".join(f"{stage['name']} {stage['duration_seconds'] or 0:.1f} s" for stage in job["stages"])
    verdict = "fits" if job["status"] == "succeeded" and gib["peak"] <= LIMIT_GIB else "DOES NOT FIT"
    print(
        f"{precision}: {job['status']}, {memory.get('device')}, start {gib['start']:.3f} GiB, peak {gib['peak']:.3f} GiB "
        f"({verdict} {LIMIT_GIB} GiB), training {gib['training']:.3f} GiB, {progress.get('tokens_per_second')} tok/s [{stages}]"
        + (f" error {job['error']}" if job["error"] else ""),
        flush=True,
    )


if __name__ == "__main__":
    main()
