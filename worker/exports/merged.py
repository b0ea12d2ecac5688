"""Adds a LoRA adapter to the 16-bit weights of its base model, tensor by tensor.

The sum is the one that peft makes in `merge_and_unload(safe_merge=True)`, to the last bit: the delta B·A·scale in fp32, rounded
to the weights' type, then added in that type. Whatever is more than such a sum is left to peft: see `reason_for_peft`.
"""

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from app.jobs.states import FailureCode
from worker.exports import kernels
from worker.exports.floats import DTYPES, as_bytes, narrowed, widened
from worker.exports.products import multiply
from worker.exports.shards import Entry, read_entries, write_shard
from worker.stages import StageFailure

Shards = dict[Path, list[Entry]]
Progress = Callable[[int, int], None]

KEY_PREFIX = "base_model.model."
CHUNK_WEIGHTS = 1 << 19
MOST_SHARD_BYTES = 5 * 10**9
"""Of the tensors in one file of the merged model, unless one alone is larger."""
LORA_A, LORA_B = ".lora_A.weight", ".lora_B.weight"

HARMLESS = frozenset(
    {"auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode", "layers_pattern", "layers_to_transform"}
    | {"lora_alpha", "lora_dropout", "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r", "revision"}
    | {"runtime_config", "target_modules", "task_type", "use_rslora"}
)
"""The settings of an adapter that may hold anything while it still means W + B·A·scale, with one scale for all modules."""

PLAIN = {"bias": ("none",), "init_lora_weights": (True, "gaussian")}
"""The values of other settings that change nothing either. Any setting that is not false and not listed is left to peft."""


@dataclass(frozen=True)
class Adapter:
    """A saved peft adapter. Its modules go by the names that they have in the base model."""

    config: dict[str, Any]
    path: Path
    tensors: dict[str, Entry]

    @classmethod
    def at(cls, folder: Path) -> "Adapter":
        config, path = json.loads((folder / "adapter_config.json").read_text()), folder / "adapter_model.safetensors"
        return cls(config, path, {entry.name: entry for entry in read_entries(path)})

    @property
    def keys(self) -> set[str]:
        return set(self.tensors)

    @property
    def modules(self) -> list[str]:
        return sorted(key.removeprefix(KEY_PREFIX).removesuffix(LORA_A) for key in self.keys if key.endswith(LORA_A))

    def factors(self, module: str) -> "Factors":
        """The scale is alpha/r, for rsLoRA alpha/√r."""
        with self.path.open("rb") as file:
            a, b = (
                widened(stored_rows(file, entry, 0, entry.rows), entry.dtype)
                for entry in (self.tensors[KEY_PREFIX + module + half] for half in (LORA_A, LORA_B))
            )
        rank = len(a)
        return Factors(a, b, self.config["lora_alpha"] / (math.sqrt(rank) if self.config["use_rslora"] else rank))


@dataclass(frozen=True)
class Factors:
    """What is added to a weight [out, in]: b [out, r] times a [r, in] times the scale, in fp32."""

    a: np.ndarray
    b: np.ndarray
    scale: float

    def added(self, stored: np.ndarray, dtype: str, start: int, stop: int) -> tuple[np.ndarray, bool]:
        """Some rows of it added to those of the weight, F16 or BF16. Returns the sums in fp32, and whether all are finite.

        Each row is the same to the last bit, however many are asked for at a time: a single one would be summed up in another
        order, so it takes a neighbour along.
        """
        low = max(0, min(start, stop - 2))
        change = multiply(self.b[low : max(stop, low + 2)], self.a)[start - low : stop - low]
        if dtype == "BF16":
            return change, kernels.add_scaled(stored.reshape(-1), change.reshape(-1), np.float32(self.scale))
        with np.errstate(over="ignore", invalid="ignore"):
            sums = stored + (change * np.float32(self.scale)).astype(np.float16)
        return sums.astype(np.float32), bool(np.isfinite(sums).all())


def read_shards(base: Path) -> Shards:
    """The files that hold a model's weights, and the tensors in each."""
    index = base / "model.safetensors.index.json"
    names = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
    return {base / name: read_entries(base / name) for name in sorted(Path(name).name for name in names)}


def reason_for_peft(adapter: Adapter, base: Path, shards: Shards) -> str | None:
    """Why this adapter cannot be merged by a plain sum, or None when it can."""
    if adapter.config["peft_type"] != "LORA":
        return f"its type is {adapter.config['peft_type']}"
    for name, value in adapter.config.items():
        if value and name not in HARMLESS and value not in PLAIN.get(name, ()):
            return f"it uses {name}"
    pairs = {KEY_PREFIX + module + half for module in adapter.modules for half in (LORA_A, LORA_B)}
    if adapter.keys != pairs:
        return f"it holds {min(adapter.keys ^ pairs)}"
    stored = {entry.name for entries in shards.values() for entry in entries}
    for module in adapter.modules:
        if f"{module}.weight" not in stored:
            return f"the base model's files hold no {module}.weight"
    if json.loads((base / "config.json").read_text()).get("tie_word_embeddings", True):
        for module in adapter.modules:
            if not any(part.isdecimal() for part in module.split(".")):
                return f"{module} lies outside the numbered layers, where weights may be shared"
    return None


def main_dtype(shards: Shards) -> str:
    """The type that most of the weights are stored in, by bytes."""
    sizes: Counter[str] = Counter()
    for entries in shards.values():
        for entry in entries:
            sizes[entry.dtype] += entry.bytes
    return max(sizes, key=lambda dtype: sizes[dtype])


def merged_dtype(shards: Shards) -> str:
    """The type of the merged model: the base's own 16-bit type; BF16, which cannot overflow, for a base in fp32."""
    return "F16" if main_dtype(shards) == "F16" else "BF16"


def merged_bytes(shards: Shards) -> int:
    """What the weights of the merged model take on disk."""
    entries = [entry for entries in shards.values() for entry in entries]
    shrinks = main_dtype(shards) == "F32"
    return sum(entry.bytes // 2 if shrinks and entry.dtype == "F32" else entry.bytes for entry in entries)


@dataclass(frozen=True)
class Shard:
    """A file of the merged model: tensors of one of the base's, `entries`, and how they are stored in it, `outputs`."""

    source: Path
    entries: list[Entry]
    outputs: list[Entry]


@dataclass(frozen=True)
class Merger:
    """A model's weights as they are once an adapter is added; without an adapter, the model's own.

    Everything but the adapter's modules stays as it is, except that a model in fp32 becomes 16-bit. The adapter must have no
    `reason_for_peft`.
    """

    shards: Shards
    adapter: Adapter | None

    @cached_property
    def dtype(self) -> str:
        return merged_dtype(self.shards)

    @cached_property
    def shrinks(self) -> bool:
        return main_dtype(self.shards) == "F32"

    @cached_property
    def modules(self) -> dict[str, str]:
        """The adapter's modules by the names of their weights."""
        return {f"{module}.weight": module for module in self.adapter.modules} if self.adapter else {}

    def is_rewritten(self, entry: Entry) -> bool:
        return entry.name in self.modules or (self.shrinks and entry.dtype == "F32")

    def files(self) -> dict[str, Shard]:
        """By its name, each shard of the merged model."""
        parts = [part for source, entries in self.shards.items() for part in self.split(source, entries)]
        if len(parts) == 1:
            return {"model.safetensors": parts[0]}
        return {f"model-{number:05d}-of-{len(parts):05d}.safetensors": part for number, part in enumerate(parts, 1)}

    def split(self, source: Path, entries: list[Entry]) -> Iterator[Shard]:
        """One of the base's shards, or as many as keep to the size."""
        part, size = Shard(source, [], []), 0
        for entry in entries:
            output = entry.as_dtype(self.dtype) if self.is_rewritten(entry) else entry
            if part.entries and size + output.bytes > MOST_SHARD_BYTES:
                yield part
                part, size = Shard(source, [], []), 0
            part.entries.append(entry)
            part.outputs.append(output)
            size += output.bytes
        yield part

    def factors(self, entry: Entry) -> Factors | None:
        """StageFailure for an adapter of another shape."""
        if self.adapter is None or entry.name not in self.modules:
            return None
        factors = self.adapter.factors(self.modules[entry.name])
        shape = factors.b.shape[0], factors.a.shape[1]
        if shape != entry.shape:
            raise misfit(f"{entry.name} is {[*entry.shape]}, its change {[*shape]}")
        return factors

    def stored_dtype(self, entry: Entry) -> str:
        """The type of the tensor in the merged model."""
        return self.dtype if self.is_rewritten(entry) else entry.dtype

    def rows(self, file: BinaryIO, entry: Entry, factors: Factors | None, start: int, stop: int) -> np.ndarray:
        """Some rows of a tensor as the merged model stores them, read from the base's shard. Raises what `floats` raises."""
        if factors is None and self.stored_dtype(entry) == entry.dtype:
            return stored_rows(file, entry, start, stop)
        return narrowed(self.floats(file, entry, factors, start, stop), self.stored_dtype(entry))

    def floats(self, file: BinaryIO, entry: Entry, factors: Factors | None, start: int, stop: int) -> np.ndarray:
        """Some rows of a tensor in fp32, rounded to the type in which the merged model stores them.

        StageFailure for what is quantised or not finite.
        """
        stored, dtype = stored_rows(file, entry, start, stop), self.stored_dtype(entry)
        if dtype != entry.dtype:
            stored = narrowed(stored, dtype)
        if factors is None:
            return widened(stored, dtype)
        sums, is_finite = factors.added(stored, dtype, start, stop)
        if not is_finite:
            raise not_finite(entry.name)
        return sums


def stored_rows(file: BinaryIO, entry: Entry, start: int, stop: int) -> np.ndarray:
    """Some rows of a tensor as they are in the shard, in a type of DTYPES. StageFailure for what is quantised."""
    if entry.dtype not in DTYPES:
        message = f"The base model stores {entry.name} as {entry.dtype}: it is quantised, and an adapter needs 16-bit weights."
        raise StageFailure(FailureCode.MODEL_UNSUPPORTED, message, hint="Name its 16-bit repository.", param="base_model")
    return entry.read_rows(file, start, stop).view(DTYPES[entry.dtype]).reshape(stop - start, *entry.shape[1:])


def merge(merger: Merger, into: Path, progress: Progress) -> dict[str, str]:
    """Writes the merged shards, and their index when there are several; returns the sha256 of each shard by its name.

    `progress` hears how many tensors are done, of how many. Raises StageFailure for an adapter that does not fit the base or
    is not finite.
    """
    done = itertools.count(1)
    total = sum(map(len, merger.shards.values()))

    def blocks(shard: Shard) -> Iterator[bytearray | memoryview]:
        with shard.source.open("rb") as file:
            for entry in shard.entries:
                if merger.is_rewritten(entry):
                    factors = merger.factors(entry)
                    for start, stop in row_ranges(entry):
                        yield as_bytes(merger.rows(file, entry, factors, start, stop))
                else:
                    yield from entry.chunks(file)
                progress(next(done), total)

    digests = {name: write_shard(into / name, shard.outputs, blocks(shard)) for name, shard in merger.files().items()}
    write_index(merger, into)
    return digests


def write_index(merger: Merger, into: Path) -> None:
    """Which shard holds which tensor, where there are several."""
    files = merger.files()
    if len(files) == 1:
        return
    weight_map = {entry.name: name for name, shard in files.items() for entry in shard.outputs}
    size = sum(entry.bytes for shard in files.values() for entry in shard.outputs)
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    (into / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def row_ranges(entry: Entry) -> Iterator[tuple[int, int]]:
    """A tensor's rows in portions of at most CHUNK_WEIGHTS, or of one row where that is more."""
    rows = max(1, CHUNK_WEIGHTS * entry.rows // max(1, prod(entry.shape)))
    for start in range(0, entry.rows, rows):
        yield start, min(start + rows, entry.rows)


def misfit(reason: str) -> StageFailure:
    message = f"The adapter does not fit the base model: {reason}."
    hint = "Probably the base model's files have changed since training. Pin spec.revision and train again."
    return StageFailure(FailureCode.MODEL_UNSUPPORTED, message, hint=hint, param="base_model")


def not_finite(name: str) -> StageFailure:
    hint = "Lower training.learning_rate and train again."
    return StageFailure(FailureCode.NAN_LOSS, f"{name} is not finite once the adapter is added.", hint=hint)
