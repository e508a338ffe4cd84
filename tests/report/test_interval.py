"""Student's t, and how often its intervals hold the mean that they are of."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.report.interval import mean_interval, t_quantile


@pytest.mark.parametrize(
    ("degrees", "known"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (30, 2.0423), (120, 1.9799)],
)
def test_quantiles_are_those_of_the_printed_tables(degrees: int, known: float) -> None:
    assert t_quantile(0.975, degrees) == pytest.approx(known, abs=5e-5)


def test_quantiles_of_one_and_two_degrees_have_closed_forms() -> None:
    assert t_quantile(0.9, 1) == pytest.approx(math.tan(math.pi * 0.4))
    assert t_quantile(0.9, 2) == pytest.approx(0.8 * math.sqrt(2 / (1 - 0.8**2)))
    assert t_quantile(0.5, 3) == pytest.approx(0, abs=1e-12)


def test_an_interval_by_hand() -> None:
    """Mean 2, standard deviation 1: 2 ± 4.3027/√3."""
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-5)
    assert all(math.isnan(end) for end in mean_interval([1.0]))


def test_over_three_seeds_t_covers_and_a_bootstrap_does_not() -> None:
    """Why it is t: of 4,000 draws of three values 95 % hold the mean, by percentiles of resampled means 70 to 80 %."""
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(4000, 3))
    ends = np.array([mean_interval(list(values)) for values in draws])
    assert np.mean((ends[:, 0] < 0) & (ends[:, 1] > 0)) == pytest.approx(0.95, abs=0.011)  # three standard errors
    again = np.stack([values[rng.integers(0, 3, size=(200, 3))].mean(axis=1) for values in draws])
    low, high = np.quantile(again, [0.025, 0.975], axis=1)
    assert np.mean((low < 0) & (high > 0)) < 0.85
