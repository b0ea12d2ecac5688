"""Runs llama.cpp's converter without the matrices. Executed in the converter's own process; imports nothing of this package.

usage: outline_script.py CONVERTER, and on stdin, when they are known, {"into", "kinds": [OUTTYPE...], "arguments"} as JSON

Writes INTO/OUTTYPE.gguf for each type: what the converter would write, up to the first tensor. And for the first type, where
each tensor comes from: INTO/outline.json, a list of {name, source, order}, in which `source` is a tensor of the model as it is
stored, with its rows in the order that outline.npz has under `order`, if that is not null. A tensor without a source is in
outline.npz itself, under its own name, as the float32 that belong into the file; with neither, only the converter can make it.
"""

# mypy: ignore-errors
import functools
import gc
import json
import os
import runpy
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

gc.disable()  # looking through a million objects of imports and vocabulary frees nothing, and takes a tenth of the time

import gguf  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

# Nothing is compiled or distributed here: transformers need not import what it would take.
torch.distributed.is_available = lambda: False
torch.compiler.disable = lambda function=None, **_: function or (lambda given: given)

# transformers looks through the source of all its models twice: a cache forgets the first ones before it comes to the last.
bounded_cache = functools.lru_cache


def cache_all(*given: Any, **settings: Any) -> Any:
    """In place of `lru_cache`, without a limit where none is named."""
    return bounded_cache(None)(*given) if given and callable(given[0]) else bounded_cache(*given, **settings)


functools.lru_cache = cache_all

from conversion import ModelBase  # noqa: E402
from transformers import LlamaConfig  # noqa: E402, F401 — with what the configuration of any model needs

sources: dict[str, dict[str, Any]] = {}
orders: dict[str, np.ndarray] = {}
vectors: set[str] = set()


def watched(modify: Callable[..., Any]) -> Callable[..., Iterator[Any]]:
    """The model's `modify_tensors`, with a note about what it makes of a tensor."""

    def watch(data: Any, name: str, layer: int | None) -> Iterator[Any]:
        results = list(modify(data, name, layer))
        for made, tensor in results:
            if len(data.shape) <= 1:  # data.dim() would read the tensor
                vectors.add(made)
            elif tensor is data:
                sources[made] = {"source": name, "order": None}
            elif len(results) == 1 and (order := find_order(modify, data.shape, name, made, layer)) is not None:
                key = next((key for key, known in orders.items() if np.array_equal(known, order)), f"order.{len(orders)}")
                orders[key] = order
                sources[made] = {"source": name, "order": key}
        yield from results

    return watch


def find_order(modify: Callable[..., Any], shape: Any, name: str, made: str, layer: int | None) -> np.ndarray | None:
    """The rows' new order, if that is all that changes: asked by a matrix of numbers that tell their place.

    They are negative and positive and lie in two columns, so that other arithmetic, or another order of columns, shows.
    """
    if len(shape) != 2:
        return None
    probe = torch.arange(2.0 * shape[0]).view(-1, 2) - shape[0]
    try:
        [(again, result)] = modify(probe, name, layer)
        order = (result[:, 0] + shape[0]).div(2).long()
        same = again == made and torch.equal(order.sort().values, torch.arange(shape[0])) and torch.equal(result, probe[order])
    except Exception as problem:
        print(f"{made}: what becomes of it is not known: {problem!r}")
        return None
    return order.numpy() if same else None


def prepare(model: Any) -> None:
    model.modify_tensors = watched(model.modify_tensors)
    original_prepare(model)


def pack(writer: Any, value: Any, kind: Any, add_vtype: bool, sub_type: Any = None) -> bytes:
    """In place of the writer's own method, which looks at each text and number of a vocabulary by itself."""
    types = set(map(type, value)) if type(value) is list and add_vtype and sub_type is None else None
    if types == {str}:
        item = gguf.GGUFValueType.STRING
        content = b"".join(struct.pack("<Q", len(text)) + text for text in map(str.encode, value))
    elif types == {gguf.TokenType}:
        item, content = gguf.GGUFValueType.INT32, struct.pack(f"<{len(value)}i", *value)
    else:
        return original_pack(writer, value, kind, add_vtype, sub_type)
    return struct.pack("<IIQ", kind, item, len(value)) + content


def write_outline(writer: Any, **_: Any) -> None:
    """In place of the writer's own method: everything but the tensors' data."""
    writer.write_ti_data_to_file()
    place = into / "outline.json"
    if place.exists():
        return
    [tensors] = writer.tensors
    values: dict[str, np.ndarray] = {}
    listed = []
    for name, info in tensors.items():
        if name in vectors and info.dtype == gguf.GGMLQuantizationType.F32:
            values[name] = gguf.LazyNumpyTensor.to_eager(info.tensor)
        listed.append({"name": name, **sources.get(name, {"source": None, "order": None})})
    np.savez(into / "outline.npz", **orders, **values)
    place.write_text(json.dumps(listed))


original_prepare = ModelBase.prepare_tensors
ModelBase.prepare_tensors = prepare
original_pack = gguf.GGUFWriter._pack_val
gguf.GGUFWriter._pack_val = pack
gguf.GGUFWriter.write_tensors_to_file = write_outline
converter = sys.argv[1]
question = json.loads(sys.stdin.read() or "null") or sys.exit()
into = Path(question["into"])
for kind in question["kinds"]:
    sys.argv = [converter, "--outfile", str(into / f"{kind}.gguf"), "--outtype", kind, *question["arguments"]]
    runpy.run_path(converter, run_name="__main__")
sys.stdout.flush()
sys.stderr.flush()
os._exit(0)  # the end of an interpreter would take a million objects apart, one by one
