"""The comparison of two codes by the means of several runs."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.authors_table import compared, rows_of, verdict

T_975_AT_2 = 4.302653
"""Of Student's distribution with two degrees of freedom, from tables."""


def test_equal_spreads_of_two_runs_have_two_degrees_of_freedom() -> None:
    difference, low, high = compared([101, 103], [99, 101])
    assert difference == pytest.approx(0.02)
    half = T_975_AT_2 * 2**0.5 / 100  # each side's mean has the variance 2 / 2
    assert (low, high) == pytest.approx((0.02 - half, 0.02 + half), rel=1e-6)


@pytest.mark.parametrize(("ours", "theirs"), [([51.0], [50.0]), ([51.0, 51.0], [50.0, 50.0])])
def test_without_spread_the_interval_is_the_difference(ours: list[float], theirs: list[float]) -> None:
    assert compared(ours, theirs) == pytest.approx((0.02, 0.02, 0.02))


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(-0.009, 0.01, "within"), (0.011, 0.02, "apart"), (-0.03, -0.011, "apart"), (-0.02, 0.001, "open")],
)
def test_verdict_by_where_the_interval_lies(low: float, high: float, word: str) -> None:
    assert verdict(low, high, 0.01) == word


def test_masks_are_a_share_of_the_first_block_of_the_same_run() -> None:
    common = {"weights": {"q": 600, "k": 400}, "all": 9, "unseen": 4, "wikitext2": 50.0, "ptb": 40.0}
    runs = [
        {"number": 0, "apart": {"q": 0, "k": 1}, "moved": None},
        {"number": 1, "apart": {"q": 2, "k": 1}, "moved": {"q": 5, "k": 0}},
    ]
    lines: list[dict[str, Any]] = [common | run | {"side": side} for run in runs for side in ("ours", "theirs")]
    wikitext, ptb = rows_of(("m", "alps", "0.7"), lines)
    assert "| 3.0e-03 (3.0e-03) | 5.0e-03 (5.0e-03) | 9 | 4 |" in wikitext
    assert "| PTB | 2 | 40.000 | 40.000 | +0.000 |" in ptb
