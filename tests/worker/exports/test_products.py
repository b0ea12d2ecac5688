"""The product is the one that torch makes on one thread, whatever the rank."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from worker.exports import products
from worker.exports.merged import Factors


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On several, torch adds up long sums in parts."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "multiply", [products.multiplier(), products.multiply_in_torch], ids=lambda multiply: multiply.__name__
)
def test_products_are_torchs(multiply):
    generator = np.random.default_rng(0)
    for rank in (1, 2, 3, 8, 16, 24, 64, 256, 1024):
        for rows, columns in ((2, 64), (3, 2048), (64, 8192), (333, 200)):
            left, right = (generator.standard_normal(shape, np.float32) for shape in ((rows, rank), (rank, columns)))
            product = np.full((rows, columns), np.nan, np.float32)
            multiply(left, right, product)
            expected = torch.from_numpy(left) @ torch.from_numpy(right)
            assert torch.equal(torch.from_numpy(product), expected), (rank, rows, columns)


def test_rows_are_the_same_however_many_are_asked_for():
    generator = np.random.default_rng(1)
    b, a = generator.standard_normal((300, 16), np.float32), generator.standard_normal((16, 577), np.float32)
    weights = generator.integers(0, 0x4000, (300, 577), np.uint16)
    whole, _ = Factors(a, b, 0.5).added(weights, "BF16", 0, 300)
    for start, stop in ((0, 1), (1, 8), (8, 299), (150, 151), (299, 300)):
        part, is_finite = Factors(a, b, 0.5).added(weights[start:stop], "BF16", start, stop)
        assert is_finite and np.array_equal(part, whole[start:stop]), (start, stop)
