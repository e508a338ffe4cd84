"""Order statistics on a GPU without sorting: the threshold of a whole matrix, and the lowest of every row.

The bits of a float, its sign turned, are an integer of the same order; thresholds are found in these bits, so they are
values that occur. -0 counts as 0, NaN as the largest. Shapes: G groups of n scores.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

WIDEST = 32768
"""The longest row that one program holds in registers."""
BITS, DIGITS, BINS = 8, 4, 256
"""A threshold is found digit by digit from the highest; a histogram of 2048 values takes five times as long."""
CHUNK = 4096
"""Scores of one program of a histogram."""
RANKS = ("rank", "dropped")
"""Arguments that sparsity decides: no kernel is compiled for multiples of 16 alone, which the next would wait for."""


@triton.jit
def _ordered(value):  # type: ignore[no-untyped-def]
    """int32 in the order of the floats."""
    bits = (value + 0.0).to(tl.int32, bitcast=True)
    return tl.where(value != value, 0x7FFFFFFF, tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits))


@triton.jit
def _digits(counts, rank, FOUND: tl.constexpr, BITS: tl.constexpr, BINS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The first `FOUND` digits of the value of this rank, from the histograms of each."""
    prefix = 0
    place = tl.arange(0, BINS)
    for digit in tl.static_range(FOUND):
        up_to = tl.cumsum(tl.load(counts + digit * BINS + place), 0)
        value = tl.sum((up_to < rank).to(tl.int32), 0)
        rank -= tl.max(tl.where(place < value, up_to, 0), 0)
        prefix = (prefix << BITS) | value
    return prefix


@triton.jit(do_not_specialize=RANKS)
def _count(  # type: ignore[no-untyped-def]
    score, counts, n, rank,
    DIGIT: tl.constexpr, CHUNK: tl.constexpr, DIGITS: tl.constexpr, BITS: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """Add up how often each value of a digit occurs among the scores whose higher digits are the threshold's."""
    group = tl.program_id(1)
    counts += group * DIGITS * BINS
    place = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    inside = place < n
    key = _ordered(tl.load(score + group.to(tl.int64) * n + place, mask=inside, other=0.0)) ^ -2147483648
    shifted = (key.to(tl.uint32, bitcast=True) >> ((DIGITS - 1 - DIGIT) * BITS)).to(tl.int32, bitcast=True)
    if DIGIT > 0:
        higher = (shifted.to(tl.uint32, bitcast=True) >> BITS).to(tl.int32, bitcast=True)
        inside = inside & (higher == _digits(counts, rank, DIGIT, BITS, BINS))
    found = tl.histogram(shifted & (BINS - 1), BINS, mask=inside)
    bins = tl.arange(0, BINS)
    tl.atomic_add(counts + DIGIT * BINS + bins, found, mask=found > 0)


@triton.jit(do_not_specialize=RANKS)
def _put_together(  # type: ignore[no-untyped-def]
    counts, threshold, rank, DIGITS: tl.constexpr, BITS: tl.constexpr, BINS: tl.constexpr
):  # fmt: skip
    bits = _digits(counts + tl.program_id(0) * DIGITS * BINS, rank, DIGITS, BITS, BINS) ^ -2147483648
    bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    tl.store(threshold + tl.program_id(0), bits.to(tl.float32, bitcast=True))


def smallest(groups: Tensor, rank: int) -> Tensor:
    """The value (G, 1) of this rank, counted from one, in every row of (G, n); no host synchronisation."""
    scores = groups.float().contiguous()
    count, n = scores.shape
    counts = torch.zeros(count, DIGITS * BINS, dtype=torch.int32, device=scores.device)
    threshold = torch.empty(count, 1, device=scores.device)
    sizes = {"DIGITS": DIGITS, "BITS": BITS, "BINS": BINS}
    with torch.cuda.device_of(scores):
        for digit in range(DIGITS):
            _count[triton.cdiv(n, CHUNK), count](scores, counts, n, rank, DIGIT=digit, CHUNK=CHUNK, **sizes)
        _put_together[(count,)](counts, threshold, rank, **sizes)
    return threshold.to(groups.dtype)


@triton.jit(do_not_specialize=RANKS)
def _keep_row(score, kept, n, dropped, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64) * n
    column = tl.arange(0, WIDTH)
    inside = column < n
    bits = _ordered(tl.load(score + row + column, mask=inside, other=float("nan")))
    # the largest value that fewer than `dropped` scores lie below, found from its highest bit down
    threshold = tl.where(tl.sum((bits < 0).to(tl.int32), 0) < dropped, 0, -2147483648)
    for step in range(31):
        trial = threshold + (1 << (30 - step))
        threshold = tl.where(tl.sum((bits < trial).to(tl.int32), 0) < dropped, trial, threshold)
    lower, equal = bits < threshold, bits == threshold
    missing = dropped - tl.sum(lower.to(tl.int32), 0)
    gone = lower | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= missing))
    tl.store(kept + row + column, tl.where(gone, 0, 1).to(tl.int8), mask=inside)


def keep_rows(groups: Tensor, dropped: int) -> Tensor:
    """False for the `dropped` lowest of every row (G, n), of equal ones the earliest."""
    scores = groups.float().contiguous()
    kept = torch.empty(scores.shape, dtype=torch.int8, device=scores.device)
    width = triton.next_power_of_2(scores.shape[1])
    with torch.cuda.device_of(scores):
        warps = min(16, max(4, width // 1024))
        _keep_row[(scores.shape[0],)](scores, kept, scores.shape[1], dropped, WIDTH=width, num_warps=warps)
    return kept.view(torch.bool)
