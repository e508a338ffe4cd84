"""A sweep counted up from parts is the sweep added up point by point."""

from __future__ import annotations

import pytest

from benchmarks.speed.count_up import OURS, Parts
from benchmarks.speed.points import SPARSITIES, Point, points

OURS_TAKE = {"magnitude": 1.0, "wanda": 2.0, "sparsegpt": 4.0}
THEIRS_TAKE = {"magnitude": 10.0, "wanda": 20.0, "sparsegpt": 320.0}
IMPORTS, FIRST, OWL, SPECTRA = 7.0, 0.5, 5.0, 40.0


def ours(point: Point) -> float:
    """Seconds of a point inside the process; those of the first sparsity take a little more."""
    return OURS_TAKE[point.method] + (FIRST if point.sparsity == OURS[0] else 0.0)


def test_parts_add_up_to_all_points() -> None:
    measured = [point for point in points(OURS) if point.allocator != "alphapruning"]
    parts = Parts(
        process=IMPORTS + sum(map(ours, measured)),
        second={point[1:]: ours(point) for point in measured if point.sparsity == OURS[1]},
        spectra=SPECTRA,
        magnitude=THEIRS_TAKE["magnitude"],
        wanda=THEIRS_TAKE["wanda"],
        owl=THEIRS_TAKE["wanda"] + OWL,
        sparsegpt_more=THEIRS_TAKE["sparsegpt"] - THEIRS_TAKE["wanda"],
    )
    every = points(SPARSITIES)
    first_extra = FIRST * len([point for point in measured if point.sparsity == OURS[0]])
    mine = IMPORTS + SPECTRA + first_extra + sum(OURS_TAKE[point.method] for point in every)
    theirs = sum(THEIRS_TAKE[point.method] + (OWL if point.allocator == "owl" else 0.0) for point in every)
    assert len(every) == 63
    assert parts.ours == pytest.approx(mine)
    assert parts.theirs == pytest.approx(theirs)
