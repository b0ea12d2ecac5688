"""The pass from a base model and an adapter to a GGUF, against llama.cpp's own route over a merged folder, in one run.

usage: export.py PLACE RESULT [QUANTIZATION ...] [--pairs 2] [--quantizer LLAMA_QUANTIZE] [--untied] [--shard-size 5GB] [--tiny]

PLACE keeps the base model, of the Llama-3.2-1B shape with random weights, for the next run; RESULT is the JSON file to write.
llama.cpp's route is a script with peft's merge_and_unload in 16 bits and save_pretrained, then the converter, and for a mixture
of types llama-quantize: the one on the PATH if no other is named, or ggml's own functions on all cores where there is none.
Ours and the route take turns, and both may use all cores. The stage `merge` in place of peft is measured too. Every step is a
process of its own: seconds on the wall and of the CPU, and the peak of its memory or its largest child's. The files are
compared byte by byte.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import save_file

from app.jobs.spec import JobSpec
from worker.exports.merged import KEY_PREFIX, LORA_A, LORA_B, read_shards
from worker.exports.mixtures import MIXTURES
from worker.process import STAGE_ENVIRONMENT
from worker.settings import CONVERTER_DIR
from worker.stages import Inputs

ROOT = Path(__file__).resolve().parents[1]
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TITLE = "export"

BY_PEFT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, adapter, into, shard_size = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
PeftModel.from_pretrained(model, adapter).merge_and_unload(safe_merge=True).save_pretrained(into, max_shard_size=shard_size)
AutoTokenizer.from_pretrained(base).save_pretrained(into)
"""
COMPILE = """
from worker.exports import kernels
kernels.load(kernels.MAKERS)
"""
BY_GGML = """
import sys
from pathlib import Path
from worker.exports import ggml, gguf, gguf_writing, kernels
from worker.exports.gguf_header import read_header
from worker.exports.mixtures import mixed
kernels.quantize = ggml.quantize
source, path, quantization = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
header = read_header(source)
contents, merger = gguf.stored(source, header)
target = gguf_writing.Target(path, mixed(header, quantization), rounded=header)
gguf_writing.write([target], contents, merger, lambda done, total: None)
"""


def save_adapter(base: Path, folder: Path) -> None:
    """Random factors of rank 16 for all linear layers."""
    torch.manual_seed(2)
    tensors = {}
    for entry in (entry for entries in read_shards(base).values() for entry in entries):
        if entry.name.removesuffix(".weight").endswith(tuple(LINEAR)):
            module = KEY_PREFIX + entry.name.removesuffix(".weight")
            tensors[module + LORA_A] = torch.randn(16, entry.shape[1]) * 0.02
            tensors[module + LORA_B] = torch.randn(entry.shape[0], 16) * 0.02
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 16, "lora_alpha": 16, "use_rslora": False, "bias": "none", "target_modules": LINEAR}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"task_type": "CAUSAL_LM"}))


def measure(command: list, environment: dict[str, str] | None = None) -> dict:
    """What a command takes, begun by a process of its own so that nobody else's peak is counted."""
    program = "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:]).returncode;"
    program += "used = resource.getrusage(resource.RUSAGE_CHILDREN);"
    program += "print(code, used.ru_maxrss, used.ru_utime + used.ru_stime)"
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, command)],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | (environment or {}),
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    code, kibibytes, cpu = done.stdout.splitlines()[-1].split()
    if int(code):
        raise SystemExit(f"{command} failed:\n{done.stdout}\n{done.stderr}")
    seconds = round(time.monotonic() - begun, 1)
    return {"seconds": seconds, "cpu_seconds": round(float(cpu), 1), "peak_mib": int(kibibytes) // 1024}


def run_stage(stage: str, spec: dict, place: Path, attempt: Path) -> dict:
    attempt.mkdir(parents=True)
    folders = {"train": place / "train", "prepare": place / "prepare"}
    inputs = Inputs(
        cache_dir=place, models_dir=place / "models", converter_dir=CONVERTER_DIR, title=TITLE, folders=folders,
        values={"prepare": {"base_model": {"revision": None}}},
    )  # fmt: skip
    request = {"stage": stage, "spec": JobSpec.model_validate(spec).model_dump(mode="json"), "inputs": inputs.to_json()}
    (attempt / "input.json").write_text(json.dumps(request))
    figures = measure([sys.executable, "-m", "worker.stages", attempt], STAGE_ENVIRONMENT)
    result = json.loads((attempt / "result.json").read_text())
    if result["status"] != "succeeded":
        raise SystemExit(f"{stage} failed: {result['error']}")
    return figures | {"peak_mib": result["peak_host_bytes"] >> 20} | result["values"]


def compare(quantization: str, place: Path, work: Path, quantizer: str | None) -> dict:
    """One file by us, and by llama.cpp's route."""
    kind = "bf16" if quantization in MIXTURES else quantization
    converted, expected = work / f"{kind}.gguf", work / f"{quantization}.gguf"
    ours = run_stage("convert", spec_of({"kind": "gguf", "quantization": quantization}), place, work / "ours")
    [made] = (work / "ours/out/gguf").glob("*.gguf")
    steps = {
        "peft": measure([sys.executable, "-c", BY_PEFT, place / "models/base", place / "train/adapter", work / "merged", "5GB"])
    }
    converter = [sys.executable, CONVERTER_DIR / "convert_hf_to_gguf.py", "--outfile", converted, "--outtype", kind]
    environment = {"PYTHONPATH": str(CONVERTER_DIR), "HF_HUB_OFFLINE": "1"}
    steps["converter"] = measure([*converter, "--model-name", TITLE, work / "merged"], environment)
    shutil.rmtree(work / "merged")
    if quantization in MIXTURES:
        command = [sys.executable, "-c", BY_GGML, converted, expected, quantization]
        if quantizer:
            command = [quantizer, converted, expected, quantization.upper(), str(os.cpu_count())]
        steps["quantizer"] = measure(command)
    identical = subprocess.run(["cmp", "-s", made, expected]).returncode == 0
    converted.unlink(), expected.unlink(missing_ok=True), shutil.rmtree(work / "ours")
    merge = run_stage("merge", spec_of({"kind": "merged"}), place, work / "merge")
    shutil.rmtree(work / "merge")
    seconds = sum(step["seconds"] for step in steps.values())
    return {
        "ours": ours, "llama_cpp": steps, "merge_by_us": merge, "identical": identical, "llama_cpp_seconds": round(seconds, 1),
        "times_faster": round(seconds / ours["seconds"], 2),
        "times_faster_with_our_merge": round(
            (seconds - steps["peft"]["seconds"] + merge["seconds"]) / ours["seconds"], 2
        ),
    }  # fmt: skip


def spec_of(export: dict) -> dict:
    return {"base_model": "base", "dataset": {"file": "file-1"}, "exports": [export]}


def summarise(quantization: str, pairs: list[dict]) -> dict:
    """Prints a line, and returns the medians of the pairs and the highest peaks."""
    ours, steps = [pair["ours"] for pair in pairs], [list(pair["llama_cpp"].values()) for pair in pairs]
    summary = {
        "quantization": quantization,
        "identical": all(pair["identical"] for pair in pairs),
        "seconds": round(median(figures["seconds"] for figures in ours), 1),
        "cpu_seconds": round(median(figures["cpu_seconds"] for figures in ours), 1),
        "peak_mib": max(figures["peak_mib"] for figures in ours),
        "llama_cpp_seconds": round(median(pair["llama_cpp_seconds"] for pair in pairs), 1),
        "llama_cpp_cpu_seconds": round(median(sum(step["cpu_seconds"] for step in route) for route in steps), 1),
        "llama_cpp_peak_mib": max(step["peak_mib"] for route in steps for step in route),
        "times_faster": round(median(pair["times_faster"] for pair in pairs), 2),
        "times_faster_with_our_merge": round(median(pair["times_faster_with_our_merge"] for pair in pairs), 2),
    }
    print(*(f"{key} {value}" for key, value in summary.items()), sep=", ", flush=True)
    return summary | {"pairs": pairs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("place", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("quantizations", nargs="*", default=["q8_0", "q4_k_m"])
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--quantizer", default=shutil.which("llama-quantize"), help="the path of llama-quantize")
    parser.add_argument("--untied", action="store_true")
    parser.add_argument("--shard-size", default="5GB")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    place = arguments.place.resolve()
    base = place / "models/base"
    if not base.exists():
        flags = [flag for flag in ("untied", "tiny") if getattr(arguments, flag)]
        command = [sys.executable, ROOT / "bench/make_model.py", base, "--shard-size", arguments.shard_size]
        measure([*command, *(f"--{flag}" for flag in flags)])
        save_adapter(base, place / "train/adapter")
    with tempfile.TemporaryDirectory(dir=place) as folder:
        work = Path(folder)
        compiling = measure([sys.executable, "-c", COMPILE], {"NUMBA_CACHE_DIR": str(work / "kernels")})
        measure([sys.executable, "-c", COMPILE])  # and where they stay
        results = []
        for quantization in arguments.quantizations:
            pairs = [compare(quantization, place, work, arguments.quantizer) for _ in range(arguments.pairs)]
            results.append(summarise(quantization, pairs))
    quantizer = "llama-quantize" if arguments.quantizer else "ggml's functions"
    facts = {"cores": os.cpu_count(), "shards": len(read_shards(base)), "quantizer": quantizer, "compiling": compiling}
    arguments.result.write_text(json.dumps(facts | {"results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
