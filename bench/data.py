"""What data costs before any training: 100,000 ShareGPT rows reported on, tokenised and packed, with the built-in tokenizer.

    python bench/data.py [--rows 100000] [--keep FOLDER]

Each pass runs in a process of its own, as its stage does. The peer is `tokenizers` alone: one `encode_batch` after the other
over the same conversations, rendered already. CPU seconds are of all threads; the ratio is ours over the peer's.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMITS = {"report": 60.0, "tokenise and pack": 180.0}
MOST_BYTES = 1.5 * 2**30
BATCH = 256
WORDS = """the of a to in is you that it he was for on are as with his they at be this have from or one had by word but not what
all were we when your can said there use an each which she do how their if will up other about out many then them
these so some her would make like him into time has look two more write go see number no way could people my than
first water been call who oil its now find long down day did get come made may part function return value list table
example result model"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--keep", type=Path, help="a folder for the rows and the plan, which are thrown away otherwise")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        size = write_rows(folder / "rows.jsonl", options.rows)
        print(f"{options.rows} rows, {size / 2**20:.0f} MiB")
        print(f"{'':20}{'CPU s':>8}{'wall s':>8}{'limit':>8}{'MiB':>8}{'longest silence s':>20}")
        report = measure("report", folder)
        prepared = measure("tokenise and pack", folder)
        peer = measure("encode_batch alone", folder)
    print(f"tokenise and pack: {prepared['tokens']} tokens, {prepared['tokens'] / prepared['cpu']:.0f} a CPU second")
    print(f"ratio to encode_batch alone: {prepared['cpu'] / peer['cpu']:.2f}")
    scale = options.rows / 100_000
    held = all(
        result["cpu"] < LIMITS[name] * scale for name, result in {"report": report, "tokenise and pack": prepared}.items()
    )
    held = held and max(report["bytes"], prepared["bytes"]) < MOST_BYTES
    print("The limits hold." if held else "A limit does not hold.")
    sys.exit(not held)


def write_rows(path: Path, rows: int) -> int:
    """Two or three exchanges a row, about 300 tokens: short questions, longer answers."""
    draw, words = random.Random(3407), WORDS.split()
    with path.open("w") as file:
        for _ in range(rows):
            turns = []
            for _ in range(draw.choice((2, 2, 3))):
                for role, mean in (("human", 3.0), ("gpt", 4.2)):
                    said = draw.choices(words, k=max(3, int(draw.lognormvariate(mean, 0.6))))
                    turns.append({"from": role, "value": f"{' '.join(said).capitalize()} {draw.randrange(10_000)}."})
            file.write(json.dumps({"conversations": turns}) + "\n")
    return path.stat().st_size


def measure(what: str, folder: Path) -> dict[str, float]:
    started = time.monotonic()
    child = subprocess.run(
        [sys.executable, __file__, "--pass", what, str(folder)], stdout=subprocess.PIPE, text=True, check=True
    )
    result = json.loads(child.stdout.splitlines()[-1])
    result["wall"] = time.monotonic() - started
    limit = LIMITS.get(what, "")
    silence = result.get("silence", "")
    print(
        f"{what:20}{result['cpu']:8.1f}{result['wall']:8.1f}{limit:>8}{result['bytes'] / 2**20:8.0f}{silence:>20}", flush=True
    )
    return result


def run_pass(what: str, folder: Path) -> None:
    """One pass in this process; its figures as JSON on the last line."""
    from worker.stages import Inputs

    spoken = [time.monotonic()]
    silences = []

    def report(kind: str, **data: object) -> None:
        silences.append(time.monotonic() - spoken[0])
        spoken[0] = time.monotonic()

    places = {"cache_dir": folder / "cache", "models_dir": None, "converter_dir": folder}
    inputs = Inputs(**places, title="bench", file=folder / "rows.jsonl", filename="rows.jsonl")
    passes = {"report": report_on, "tokenise and pack": prepare, "encode_batch alone": encode_alone}
    figures = passes[what](inputs, folder, report)
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = figures.pop("cpu", None) or sum(one.ru_utime + one.ru_stime for one in usage)
    silence = {"silence": f"{max([*silences, time.monotonic() - spoken[0]]):.1f}"} if silences else {}
    print(json.dumps({"cpu": cpu, "bytes": usage[0].ru_maxrss * 1024, **silence, **figures}))


def report_on(inputs: object, folder: Path, report: object) -> dict[str, float]:
    from worker.stages import inspect

    return {"rows": inspect.run(None, inputs, folder, report).values["report"]["rows"]}


def prepare(inputs: object, folder: Path, report: object) -> dict[str, float]:
    from app.jobs.spec import JobSpec
    from worker.stages import prepare

    out = folder / "out"
    out.mkdir()
    spec = JobSpec(base_model="smollm2-135m-instruct", dataset={"file": "file-1", "validation_fraction": 0.01})
    return {"tokens": prepare.run(spec, inputs, out, report).values["counts"]["tokens"]}


def encode_alone(inputs: object, folder: Path, report: object) -> dict[str, float]:
    """Only the calls of encode_batch are counted, not the rendering before them."""
    from worker.data.readers import read_rows
    from worker.data.surveys import normalise
    from worker.data.tokenizer import load_tokenizer

    [model] = (folder / "cache" / "models" / "smollm2-135m-instruct").glob("*/config.json")
    tokenizer = load_tokenizer(model.parent)
    rows = normalise(read_rows(inputs.file, inputs.filename), "sharegpt")
    texts = [tokenizer.apply_chat_template(row.sample.turns, tokenize=False) for row in rows]
    before = time.process_time()
    for start in range(0, len(texts), BATCH):
        tokenizer.backend_tokenizer.encode_batch(texts[start : start + BATCH], add_special_tokens=False)
    return {"cpu": time.process_time() - before}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--pass"]:
        run_pass(sys.argv[2], Path(sys.argv[3]))
    else:
        main()
