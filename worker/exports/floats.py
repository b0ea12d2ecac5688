"""The types of float that weights are stored in, as NumPy arrays."""

import numpy as np

from worker.exports import kernels

DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
"""By their names in a shard, the types of float as NumPy has them: bfloat16, which it lacks, as its bits."""


def widened(stored: np.ndarray, dtype: str) -> np.ndarray:
    """Of a type of DTYPES, as fp32."""
    if dtype != "BF16":
        return stored.astype(np.float32, copy=False)
    floats = np.empty(stored.shape, np.float32)
    kernels.widen(stored.reshape(-1), floats.reshape(-1))
    return floats


def narrowed(floats: np.ndarray, dtype: str) -> np.ndarray:
    """fp32, C-contiguous, rounded to a type of DTYPES."""
    if dtype != "BF16":
        with np.errstate(over="ignore"):
            return floats.astype(DTYPES[dtype], copy=False)
    bits = np.empty(floats.shape, np.uint16)
    kernels.narrow(floats.reshape(-1), bits.reshape(-1))
    return bits


def as_bytes(rows: np.ndarray) -> memoryview:
    return rows.reshape(-1).view(np.uint8).data
