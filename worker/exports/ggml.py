"""ggml's own quantisation, out of the library that the package xllamacpp carries.

A call releases Python's lock, so that threads quantise at the same time. Numbers and block sizes from ggml's documentation of
its types (ggml.h, ggml-common.h).
"""

import ctypes
import importlib.util
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Kind:
    """A type of tensor: `block` weights are stored in `size` bytes."""

    name: str
    number: int
    block: int
    size: int

    def bytes_of(self, shape: tuple[int, ...]) -> int:
        return prod(shape) // self.block * self.size


F32, F16, BF16 = Kind("F32", 0, 1, 4), Kind("F16", 1, 1, 2), Kind("BF16", 30, 1, 2)
Q5_0, Q5_1, Q8_0 = Kind("Q5_0", 6, 32, 22), Kind("Q5_1", 7, 32, 24), Kind("Q8_0", 8, 32, 34)
Q4_K, Q5_K, Q6_K = Kind("Q4_K", 12, 256, 144), Kind("Q5_K", 13, 256, 176), Kind("Q6_K", 14, 256, 210)
KINDS = {kind.number: kind for kind in (F32, F16, BF16, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K)}


@cache
def library() -> ctypes.CDLL:
    """The shared library, without the package's Python part."""
    import torch  # noqa: F401 — brings the OpenMP library that xllamacpp needs and a bare system lacks

    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'xllamacpp'")
    [path] = Path(spec.submodule_search_locations[0]).glob("xllamacpp*.so")
    loaded = ctypes.CDLL(str(path))
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    loaded.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]
    loaded.ggml_quantize_chunk.restype = ctypes.c_size_t
    return loaded


def quantize(rows: np.ndarray, kind: Kind) -> np.ndarray:
    """float32 [n, width], C-contiguous, as the bytes of `kind`; the width is a multiple of its block."""
    if rows.dtype != np.float32 or not rows.flags.c_contiguous or rows.shape[1] % kind.block:
        raise ValueError(f"{kind.name} cannot be made of {rows.dtype} {rows.shape}")
    result = np.empty(kind.bytes_of(rows.shape), dtype=np.uint8)
    written = library().ggml_quantize_chunk(kind.number, rows.ctypes.data, result.ctypes.data, 0, *rows.shape, None)
    if written != result.nbytes:
        raise ValueError(f"ggml wrote {written} bytes of {kind.name} where {result.nbytes} were expected")
    return result
