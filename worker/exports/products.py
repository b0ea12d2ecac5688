"""The product of two factors as torch makes it on one thread, to the last bit.

torch calls the function `sgemm` of Intel's MKL, which its library carries on x86-64. It is called here without torch's Python
part, whose import takes longer than all the products of a small model. Where the library is another one, torch is imported.
"""

import ctypes
import importlib.util
from collections.abc import Callable
from ctypes import byref, c_char_p, c_float, c_int
from functools import cache
from pathlib import Path

import numpy as np


def multiply(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """float32 [m, k] times float32 [k, n], both C-contiguous, on the calling thread alone."""
    product = np.empty((len(left), right.shape[1]), np.float32)
    multiplier()(left, right, product)
    return product


@cache
def multiplier() -> Callable[[np.ndarray, np.ndarray, np.ndarray], None]:
    """What fills the third array with the product of the first two."""
    try:
        library = load()
        sgemm, set_threads = library.sgemm_, library.MKL_Set_Num_Threads_Local
    except (OSError, AttributeError):
        return multiply_in_torch
    one, zero, plain = c_float(1), c_float(0), c_char_p(b"N")

    def multiply_in_mkl(left: np.ndarray, right: np.ndarray, product: np.ndarray) -> None:
        (m, k), n = left.shape, right.shape[1]
        rows, columns, depth = c_int(m), c_int(n), c_int(k)
        before = set_threads(1)
        # Fortran's matrices are ours transposed: productᵀ = rightᵀ·leftᵀ
        sgemm(
            plain, plain, byref(columns), byref(rows), byref(depth), byref(one), address(right), byref(columns),
            address(left), byref(depth), byref(zero), address(product), byref(columns),
        )  # fmt: skip
        set_threads(before)

    return multiply_in_mkl


def load() -> ctypes.CDLL:
    """torch's library. OSError where there is none that can be loaded by itself."""
    package = importlib.util.find_spec("torch")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'torch'")
    return ctypes.CDLL(str(Path(package.submodule_search_locations[0], "lib", "libtorch_cpu.so")))


def address(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def multiply_in_torch(left: np.ndarray, right: np.ndarray, product: np.ndarray) -> None:
    import torch

    torch.set_num_threads(1)
    torch.mm(torch.from_numpy(left), torch.from_numpy(right), out=torch.from_numpy(product))
