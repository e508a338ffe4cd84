"""Intervals of means over few seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import fmean, stdev


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """The t interval of a mean, with S − 1 degrees of freedom for S values; NaN for fewer than two of them.

    A bootstrap over three to five seeds has too few values to draw from: its intervals are far too narrow.
    """
    if len(values) < 2:
        return math.nan, math.nan
    half = t_quantile((1 + level) / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


@lru_cache
def t_quantile(share: float, degrees: int) -> float:
    """The value below which this share (at least a half) of Student's t distribution lies."""
    low, high = 0.0, 1.0
    while _t_cdf(high, degrees) < share:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_cdf(middle, degrees) < share else (low, middle)
    return (low + high) / 2


def _t_cdf(t: float, degrees: int) -> float:
    """Abramowitz and Stegun 26.7.3 and 26.7.4: finite sums for whole degrees of freedom."""
    angle = math.atan(t / math.sqrt(degrees))
    odd = degrees % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for step in range(1 + odd, degrees, 2):
        total += term
        term *= step / (step + 1) * math.cos(angle) ** 2
    within = math.sin(angle) * total
    return 0.5 + (angle + within) / math.pi if odd else 0.5 + within / 2
