"""Quantisation as ggml does it, to the last bit, in machine code that numba makes for the processor at hand.

The formulas are those of ggml's reference functions (ggml-quants.c: quantize_row_q8_0_ref, make_qkx2_quants, make_qx_quants,
and what calls them). Only the order of the work differs: groups of weights are neighbours in a vector register, and the sums of
each run in ggml's order. No two roundings may become one: fastmath stays off, and then neither numba nor LLVM fuses any.

All in one file, because numba looks at the file of a function alone to see whether what it kept is still valid.
"""

# mypy: disable-error-code="no-untyped-def"
import time
from collections.abc import Callable, Iterable
from typing import Any

import numba
import numpy as np

from worker.exports import ggml
from worker.exports.ggml import Q4_K, Q5_K, Q6_K, Q8_0, Kind

LANES = 64
"""Groups that are worked on at a time."""
LINE, SCALED = 32, 16
"""Weights of a group that has a scale and an offset, and of one that has a scale only."""
ROUNDER = np.float32(3 << 22)
"""What is added to it stands in its lowest bits, as a whole number."""
ZERO, ONE, TENTH, INFINITY, HALF = (np.float32(number) for number in (0, 1, 0.1, np.inf, 0.5))
TINY = np.float32(1e-15)
ATTEMPTS = (0, *range(-9, 0), *range(1, 10))


def quantize(rows: np.ndarray, kind: Kind) -> np.ndarray:
    """float32 [n, width], C-contiguous, as the bytes of `kind`; the width is a multiple of its block."""
    if kind not in MAKERS:
        return ggml.quantize(rows, kind)
    if rows.dtype != np.float32 or not rows.flags.c_contiguous or rows.shape[1] % kind.block:
        raise ValueError(f"{kind.name} cannot be made of {rows.dtype} {rows.shape}")
    blocks = np.empty((rows.size // kind.block, kind.size), np.uint8)
    make, *settings = MAKERS[kind]
    make(rows.reshape(-1), blocks, *settings)
    return blocks.reshape(-1)


def load(kinds: Iterable[Kind]) -> None:
    """Whatever merges and quantises to these, from where it is kept, or compiled: that takes seconds, once on a machine."""
    begun = time.monotonic()
    weights, numbers = np.zeros(1, np.uint16), np.zeros(1, np.float32)
    add_scaled(weights, numbers, ONE), widen(weights, numbers), narrow(numbers, weights)
    for kind in MAKERS.keys() & set(kinds):
        quantize(np.zeros((1, kind.block), np.float32), kind)
    if any(function.stats.cache_misses for function in (add_scaled, widen, narrow, *(make for make, *_ in MAKERS.values()))):
        print(f"The kernels for this processor were compiled in {time.monotonic() - begun:.1f} s.", flush=True)


def compiled(function: Callable) -> Any:
    """Kept for the next process, where there is a place to keep it."""
    try:
        return numba.njit(function, nogil=True, error_model="numpy", cache=True)
    except RuntimeError:
        return numba.njit(function, nogil=True, error_model="numpy")


@compiled
def nearest(number):
    """ggml's nearest_int: halves go to the even neighbour. What is no number, or too large, becomes the same as there."""
    return np.int32((np.float32(number + ROUNDER).view(np.int32) & 0x007FFFFF) - 0x00400000)


@compiled
def bounded(number, least, most):
    return min(max(nearest(number), np.int32(least)), np.int32(most))


@compiled
def half(number):
    """The bits of the nearest float16."""
    bits = np.float32(number).view(np.uint32)
    sign, size = np.uint32((bits >> 16) & 0x8000), np.uint32(bits & 0x7FFFFFFF)
    if size > 0x7F800000:
        return np.uint16(sign | 0x7E00)
    if size >= 0x477FF000:  # nearer to 65536 than to the largest, or as near
        return np.uint16(sign | 0x7C00)
    if size < 0x38800000:  # beside 0.5, a float32 has as many places as the smallest of float16
        size = np.uint32(np.float32(size.view(np.float32) + HALF).view(np.uint32) - 0x3F000000)
    else:
        size = np.uint32((size - 0x38000000 + 0x0FFF + ((size >> 13) & 1)) >> 13)
    return np.uint16(sign | size)


@compiled
def single(bits):
    """The float32 of a float16's bits."""
    size = np.uint32((np.uint32(bits) & 0x7FFF) << 13)
    number = np.float32(size.view(np.float32) * np.float32(2.0**112))
    if size >= 0x0F800000:
        number = np.uint32(size | 0x7F800000).view(np.float32)
    return -number if bits & 0x8000 else number


@compiled
def store_half(number, place):
    """Writes it as two bytes, and returns what it is then."""
    bits = half(number)
    place[0], place[1] = np.uint8(bits & 0xFF), np.uint8(bits >> 8)
    return single(bits)


@compiled
def bits_of_bfloat16(number):
    """Of the nearest one to what is finite."""
    bits = np.float32(number).view(np.uint32)
    return np.uint32((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)


@compiled
def add_scaled(weights, change, scale):
    """Makes the float32 of `change` the sum of change·scale and as many bfloat16, of which `weights` are the bits.

    Product and sum are rounded to bfloat16. Returns whether both are finite everywhere.
    """
    largest = np.uint32(0)
    for i in range(len(weights)):
        product = change[i] * scale
        rounded = np.uint32(bits_of_bfloat16(product) << 16).view(np.float32)
        added = np.uint32(np.uint32(weights[i]) << 16).view(np.float32) + rounded
        bits = np.uint32(bits_of_bfloat16(added) << 16)
        change[i] = bits.view(np.float32)
        size = max(np.uint32(np.float32(product).view(np.uint32) & 0x7F800000), np.uint32(bits & 0x7F800000))
        largest = size if size > largest else largest
    return largest < 0x7F800000


@compiled
def widen(weights, numbers):
    """The float32 of bfloat16, of which `weights` are the bits."""
    for i in range(len(weights)):
        numbers[i] = np.uint32(np.uint32(weights[i]) << 16).view(np.float32)


@compiled
def narrow(numbers, weights):
    """The bits of the bfloat16 that are nearest to float32; what is no number stays none."""
    for i in range(len(numbers)):
        bits = np.float32(numbers[i]).view(np.uint32)
        is_number = np.uint32(bits & 0x7FFFFFFF) <= 0x7F800000
        weights[i] = np.uint16(bits_of_bfloat16(numbers[i]) if is_number else (bits >> 16) | 0x40)


@compiled
def transpose(weights, width, start, x):
    """Groups from `start` on as columns of x, [width, LANES]; the last group stands in for those behind the end."""
    last = len(weights) // width - 1
    for k in range(LANES):
        group = min(start + k, last) * width
        for i in range(width):
            x[i, k] = weights[group + i]


@compiled
def make_q8_0(weights, blocks, width):
    """`width` is 32: not known before, so that loops over it are put into vectors instead of being unrolled."""
    for block in range(len(blocks)):
        start, made = block * width, blocks[block]
        largest = np.int32(0)  # compared by its bits, which are in the same order
        for i in range(width):
            size = np.int32(np.float32(weights[start + i]).view(np.int32) & 0x7FFFFFFF)
            largest = size if size > largest else largest
        step = np.int32(largest).view(np.float32) / np.float32(127)
        factor = ONE / step if step != ZERO else ZERO
        factor = ZERO if factor == INFINITY else factor
        store_half(step, made)
        for i in range(width):
            exact = weights[start + i] * factor
            whole = np.int32(exact)
            rest = exact - np.float32(whole)  # halves go away from zero
            made[2 + i] = np.uint8(whole + np.int32(rest >= HALF) - np.int32(rest <= -HALF))


@compiled
def weigh(x, w):
    """A weight's importance: its group's root mean square plus its own size."""
    mean = np.zeros(LANES, np.float32)
    for i in range(LINE):
        for k in range(LANES):
            mean[k] += x[i, k] * x[i, k]
    for k in range(LANES):
        mean[k] = np.sqrt(mean[k] / np.float32(LINE))
    for i in range(LINE):
        for k in range(LANES):
            w[i, k] = mean[k] + abs(x[i, k])


@compiled
def survey(x, w, low, high, sum_w, sum_x):
    for k in range(LANES):
        low[k], high[k], sum_w[k], sum_x[k] = x[0, k], x[0, k], w[0, k], w[0, k] * x[0, k]
    for i in range(1, LINE):
        for k in range(LANES):
            low[k] = x[i, k] if x[i, k] < low[k] else low[k]
            high[k] = x[i, k] if x[i, k] > high[k] else high[k]
            sum_w[k] += w[i, k]
            sum_x[k] += w[i, k] * x[i, k]
    for k in range(LANES):
        low[k] = ZERO if low[k] > ZERO else low[k]


@compiled
def place_on_grid(x, w, factor, origin, top, q, sums):
    """Each weight's whole number q, and each group's sums of w·q, w·q² and w·q·x."""
    sums[:] = ZERO
    for i in range(LINE):
        for k in range(LANES):
            level = np.float32(bounded(factor[k] * (x[i, k] - origin[k]), 0, top))
            weighted = w[i, k] * level
            q[i, k] = level
            sums[0, k] += weighted
            sums[1, k] += weighted * level
            sums[2, k] += weighted * x[i, k]


@compiled
def measure_errors(x, w, q, scale, low, errors):
    errors[:] = ZERO
    for i in range(LINE):
        for k in range(LANES):
            difference = scale[k] * q[i, k] + low[k] - x[i, k]
            errors[k] += w[i, k] * (difference * difference)


@compiled
def draw_lines(sum_w, sum_x, sums, divisor, scale, low):
    """The lines scale·q + low of the least weighted squares, through zero where they would lie above it at q = 0.

    They are none where the divisor is not positive.
    """
    for k in range(LANES):
        sum_q, sum_q2, sum_qx = sums[0, k], sums[1, k], sums[2, k]
        divisor[k] = sum_w[k] * sum_q2 - sum_q * sum_q
        above = (sum_q2 * sum_x[k] - sum_q * sum_qx) / divisor[k]
        through = (sum_w[k] * sum_qx - sum_x[k] * sum_q) / divisor[k]
        scale[k] = sum_qx / sum_q2 if above > ZERO else through
        low[k] = ZERO if above > ZERO else above


@compiled
def fit_lines(x, top, first, steps, scale, low, factor, origin):
    """For each group of x, [32, LANES], the line scale·q + low, q from 0 to `top`, that lies nearest to its weights.

    Grids of top + first levels and up to `steps` tenths more are tried. q is nearest(factor·(weight - origin)), within bounds.
    Where all weights are one number, the scale is 0, and so is what nearest makes of an infinite factor.
    """
    w, q, sums = np.empty((LINE, LANES), np.float32), np.empty((LINE, LANES), np.float32), np.empty((3, LANES), np.float32)
    lanes = np.empty((9, LANES), np.float32)
    high, sum_w, sum_x, grid, best = lanes[0], lanes[1], lanes[2], lanes[3], lanes[4]
    divisor, scale_now, low_now, errors = lanes[5], lanes[6], lanes[7], lanes[8]
    weigh(x, w)
    survey(x, w, low, high, sum_w, sum_x)
    for k in range(LANES):
        grid[k] = factor[k] = np.float32(top) / (high[k] - low[k])
        scale[k], origin[k] = ONE / grid[k], low[k]
    place_on_grid(x, w, grid, origin, top, q, sums)
    measure_errors(x, w, q, scale, low, best)
    for step in range(steps + 1):
        levels = np.float32(np.float32(first + np.float32(TENTH * np.float32(step))) + np.float32(top))
        for k in range(LANES):
            grid[k] = levels / (high[k] - low[k])
        place_on_grid(x, w, grid, low, top, q, sums)
        draw_lines(sum_w, sum_x, sums, divisor, scale_now, low_now)
        measure_errors(x, w, q, scale_now, low_now, errors)
        for k in range(LANES):
            better = (divisor[k] > ZERO) & (errors[k] < best[k])
            best[k] = errors[k] if better else best[k]
            factor[k], origin[k] = grid[k] if better else factor[k], low[k] if better else origin[k]
            scale[k], low[k] = scale_now[k] if better else scale[k], low_now[k] if better else low[k]


@compiled
def pack_lines(weights, top, scale, depth, factor, origin, made):
    """A block of eight groups with their lines scale·q - depth, which are rounded first: Q4_K, or with a `top` of 31, Q5_K."""
    steps, depths, q = np.empty(8, np.uint8), np.empty(8, np.uint8), np.empty((8, LINE), np.uint8)
    most, deepest = max(ZERO, scale.max()), max(ZERO, depth.max())
    to_steps = np.float32(63) / most if most > ZERO else ZERO
    to_depths = np.float32(63) / deepest if deepest > ZERO else ZERO
    unit, depth_unit = store_half(most / np.float32(63), made), store_half(deepest / np.float32(63), made[2:])
    for j in range(8):
        steps[j] = min(np.uint8(nearest(to_steps * scale[j])), np.uint8(63))
        depths[j] = min(np.uint8(nearest(to_depths * depth[j])), np.uint8(63))
        step, below, x = unit * np.float32(steps[j]), depth_unit * np.float32(depths[j]), weights[j * LINE : j * LINE + LINE]
        if step != ZERO:
            for i in range(LINE):
                q[j, i] = bounded((x[i] + below) / step, 0, top)
        else:
            for i in range(LINE):
                q[j, i] = bounded(factor[j] * (x[i] - origin[j]), 0, top)
    for j in range(4):
        made[4 + j] = steps[j] | (steps[4 + j] >> 4) << 6
        made[8 + j] = depths[j] | (depths[4 + j] >> 4) << 6
        made[12 + j] = (steps[4 + j] & 15) | (depths[4 + j] & 15) << 4
    nibbles = made[16:]
    if top > 15:
        made[16:48] = 0
        for j in range(8):
            for i in range(LINE):
                made[16 + i] |= (q[j, i] >> 4) << j
        nibbles = made[48:]
    for j in range(4):
        for i in range(LINE):
            nibbles[LINE * j + i] = (q[2 * j, i] & 15) | (q[2 * j + 1, i] & 15) << 4


@compiled
def make_lines(weights, blocks, top, first, steps):
    x, lines = np.empty((LINE, LANES), np.float32), np.empty((4, LANES), np.float32)
    scale, low, factor, origin = lines[0], lines[1], lines[2], lines[3]
    for start in range(0, len(blocks), LANES // 8):
        transpose(weights, LINE, start * 8, x)
        fit_lines(x, top, first, steps, scale, low, factor, origin)
        for block in range(start, min(start + LANES // 8, len(blocks))):
            part = slice((block - start) * 8, (block - start) * 8 + 8)
            whole = weights[block * 256 : block * 256 + 256]
            pack_lines(whole, top, scale[part], -low[part], factor[part], origin[part], blocks[block])


@compiled
def fit_scales(x, scale, factor):
    """For each group of x, [16, LANES], the scale of whole numbers from -32 to 31 that lies nearest to its weights.

    The numbers are nearest(factor·weight), within bounds. Both scale and factor are 0 where the weights are next to nothing.
    """
    lanes = np.zeros((5, LANES), np.float32)
    largest, best, sum_qx, sum_q2, grid = lanes[0], lanes[1], lanes[2], lanes[3], lanes[4]
    for i in range(SCALED):
        for k in range(LANES):
            largest[k] = x[i, k] if abs(x[i, k]) > abs(largest[k]) else largest[k]
    for attempt in ATTEMPTS:
        for k in range(LANES):
            grid[k] = -(np.float32(32) + TENTH * np.float32(attempt)) / largest[k]
        sum_qx[:], sum_q2[:] = ZERO, ZERO
        for i in range(SCALED):
            for k in range(LANES):
                q = np.float32(bounded(grid[k] * x[i, k], -32, 31))
                w = x[i, k] * x[i, k]
                sum_qx[k] += w * x[i, k] * q
                sum_q2[k] += w * q * q
        for k in range(LANES):
            better = (sum_q2[k] > ZERO) & (sum_qx[k] * sum_qx[k] > best[k] * sum_q2[k])
            scale_now = sum_qx[k] / sum_q2[k] if sum_q2[k] != ZERO else ZERO
            better |= attempt == 0
            factor[k], scale[k] = grid[k] if better else factor[k], scale_now if better else scale[k]
            best[k] = scale_now * sum_qx[k] if better else best[k]
    for k in range(LANES):
        if abs(largest[k]) < TINY:
            factor[k], scale[k] = ZERO, ZERO


@compiled
def pack_scales(weights, scale, factor, made):
    """A block of 16 groups, as Q6_K."""
    largest = ZERO
    for j in range(16):
        largest = scale[j] if abs(scale[j]) > abs(largest) else largest
    made[:] = 0
    if abs(largest) < TINY:
        return
    to_steps, q = np.float32(-128) / largest, np.zeros(256, np.uint8)
    unit = store_half(ONE / to_steps, made[208:])
    for j in range(16):
        steps = np.int8(min(nearest(to_steps * scale[j]), np.int32(127)))
        made[192 + j] = np.uint8(steps)
        step = unit * np.float32(steps)
        for i in range(j * 16, j * 16 + 16):
            if step != ZERO:
                q[i] = bounded(weights[i] / step, -32, 31) + 32
            elif factor[j] != ZERO:
                q[i] = bounded(weights[i] * factor[j], -32, 31) + 32
    for i in range(128):
        side, place = i // 64, i % 64
        low = 128 * side + place
        made[i] = (q[low] & 15) | (q[low + 64] & 15) << 4
    for i in range(64):
        low = 128 * (i // 32) + i % 32
        made[128 + i] = q[low] >> 4 | (q[low + 32] >> 4) << 2 | (q[low + 64] >> 4) << 4 | (q[low + 96] >> 4) << 6


@compiled
def make_q6_k(weights, blocks):
    x, scale, factor = np.empty((SCALED, LANES), np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    for start in range(0, len(blocks), LANES // 16):
        transpose(weights, SCALED, start * 16, x)
        fit_scales(x, scale, factor)
        for block in range(start, min(start + LANES // 16, len(blocks))):
            part = slice((block - start) * 16, (block - start) * 16 + 16)
            pack_scales(weights[block * 256 : block * 256 + 256], scale[part], factor[part], blocks[block])


MAKERS: dict[Kind, tuple] = {
    Q8_0: (make_q8_0, 32),
    Q4_K: (make_lines, np.int32(15), np.float32(-1), np.int32(20)),
    Q5_K: (make_lines, np.int32(31), np.float32(-0.5), np.int32(15)),
    Q6_K: (make_q6_k,),
}
"""With what a function is told besides: numbers that numba takes for variables, so that one compilation serves both."""
