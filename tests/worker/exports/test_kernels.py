"""Our kernels against ggml's own, byte by byte: other processors round no differently, so this holds on all of them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.exports import ggml, kernels
from worker.exports.ggml import Q4_K, Q5_0, Q5_K, Q6_K, Q8_0

KINDS = [Q8_0, Q4_K, Q5_K, Q6_K]
SHAPE = 37, 512
"""As many blocks as leave the last round of work half empty."""


def make_samples() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    normal = (generator.standard_normal(SHAPE) * 0.02).astype(np.float32)
    of_groups = np.exp2(generator.integers(-145, 120, (SHAPE[0], SHAPE[1] // 16))).astype(np.float32).repeat(16, axis=1)
    any_bits = generator.integers(0, 2**32, SHAPE, dtype=np.uint32).view(np.float32)
    return {
        "normal": normal,
        "bf16": (normal.view(np.uint32) & 0xFFFF0000).view(np.float32),
        "sparse": normal * (generator.random(SHAPE) < 0.1),
        "zeros": np.zeros(SHAPE, np.float32),
        "constants": normal[:, ::256].repeat(256, axis=1),
        "two neighbours": np.where(normal > 0, np.float32(-1), np.nextafter(np.float32(-1), np.float32(0))),
        "all negative": -abs(normal),
        "all positive": abs(normal),
        "whole numbers": generator.integers(-3, 4, SHAPE).astype(np.float32),
        "halves of a grid": np.round(normal * 5000) / np.float32(254),
        "outliers": normal * np.exp(generator.standard_normal(SHAPE) * 4).astype(np.float32),
        "scales of their own": normal * of_groups,
        "near the smallest that counts": normal * np.float32(5e-14),
        "subnormal": normal * np.float32(1e-38),
        "the last bits": generator.integers(0, 4, SHAPE).astype(np.uint32).view(np.float32),
        "subnormal in float16": normal * np.float32(1e-5),
        "too large for float16": normal * np.float32(1e36),
        "any finite bits": np.where(np.isfinite(any_bits), any_bits, np.float32(0)),
    }


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_blocks_are_ggmls(kind):
    for name, rows in make_samples().items():
        rows = np.ascontiguousarray(rows, np.float32)
        assert np.array_equal(kernels.quantize(rows, kind), ggml.quantize(rows, kind)), name


@settings(max_examples=200, deadline=None)
@given(data=st.binary(min_size=1, max_size=64), times=st.floats(1e-40, 1e36), kind=st.sampled_from(KINDS))
def test_blocks_of_few_different_weights_are_ggmls(data, times, kind):
    few = (np.frombuffer(data, np.int8) * np.float64(times)).astype(np.float32)
    rows = np.resize(few, (1, 512))
    assert np.array_equal(kernels.quantize(rows, kind), ggml.quantize(rows, kind))


def test_every_float16_is_read_and_written():
    every = np.arange(1 << 16, dtype=np.uint16)
    numbers = every.view(np.float16).astype(np.float32)
    finite = np.isfinite(numbers)
    assert all(kernels.half(number) == bits for number, bits in zip(numbers[finite], every[finite], strict=True))
    assert np.array_equal([kernels.single(bits) for bits in every[finite]], numbers[finite])


def test_rare_types_are_left_to_ggml():
    rows = np.ones((2, 288), np.float32)
    assert np.array_equal(kernels.quantize(rows, Q5_0), ggml.quantize(rows, Q5_0))


@pytest.mark.parametrize("rows", [np.ones((2, 300), np.float32), np.ones((2, 256)), np.ones((512, 2), np.float32).T])
def test_other_arrays_are_refused(rows):
    with pytest.raises(ValueError, match="Q4_K cannot be made"):
        kernels.quantize(rows, Q4_K)


def test_a_scaled_change_is_added_as_by_torch():
    samples = {name: torch.from_numpy(np.ascontiguousarray(rows, np.float32)) for name, rows in make_samples().items()}
    for name, change in samples.items():
        for scale in (1.0, 1 / 3, 1e-3):
            weights = samples["outliers"].to(torch.bfloat16)
            expected = weights + (change * scale).to(torch.bfloat16)
            sums = change.clone().reshape(-1)
            bits = weights.view(torch.uint16).reshape(-1).numpy()
            is_finite = kernels.add_scaled(bits, sums.numpy(), np.float32(scale))
            assert is_finite == bool(expected.isfinite().all()), (name, scale)
            assert not is_finite or torch.equal(sums.view(expected.shape), expected.float()), (name, scale)


def test_bfloat16_is_rounded_to_as_by_torch():
    for name, rows in make_samples().items():
        numbers = np.ascontiguousarray(rows, np.float32).reshape(-1)
        bits, again = np.empty(numbers.shape, np.uint16), np.empty(numbers.shape, np.float32)
        kernels.narrow(numbers, bits)
        kernels.widen(bits, again)
        assert torch.equal(torch.from_numpy(again), torch.from_numpy(numbers).bfloat16().float()), name


def test_every_bfloat16_stays_as_it_is():
    every, numbers = np.arange(1 << 16, dtype=np.uint16), np.empty(1 << 16, np.float32)
    again = np.empty_like(every)
    kernels.widen(every, numbers)
    kernels.narrow(numbers, again)
    is_signalling = (every & 0x7F80 == 0x7F80) & (every & 0x7F != 0) & (every & 0x40 == 0)
    assert np.array_equal(again[~is_signalling], every[~is_signalling])
    assert np.isnan(numbers[is_signalling]).all() and np.array_equal(again[is_signalling], every[is_signalling] | 0x40)


@pytest.mark.parametrize("weight", [0x0000, 0x7F7F, 0xFF80])
@pytest.mark.parametrize("change", [0x7F800000, 0xFF800000, 0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F7FFFFF])
def test_what_is_not_finite_is_told(weight, change):
    weights, changes = np.array([weight] * 9, np.uint16), np.array([change] + [0] * 8, np.uint32).view(np.float32)
    assert not kernels.add_scaled(weights, changes, np.float32(1))
