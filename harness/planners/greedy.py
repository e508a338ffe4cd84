"""Shared parts of the greedy planners: one unit after the other, what is left being measured anew each time."""

from __future__ import annotations

from dataclasses import dataclass

from harness import catalogue
from harness.core.costs import Cost, Work
from harness.core.depth import DepthPlanner
from harness.core.geometry import Geometry
from harness.core.interfaces import StructureView
from harness.core.scan import greedy, judging, one_by_one, scanning
from harness.core.structure import Plan
from harness.runtime.errors import UserError


@dataclass(frozen=True)
class Greedy(DepthPlanner):
    """Settings that greedy planners share: the unit goes without which the mean loss is lowest, again and again."""

    windows: int | None = None
    """Calibration windows that are looked at; None: all."""

    uses_cache = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.windows is not None and self.windows < 1:
            raise UserError("planner.windows has to be at least 1.")

    def cost(self, geometry: Geometry, work: Work) -> Cost:
        """In every round, the model that is left without each of its units."""
        units, going = self.counts(geometry, work)
        tokens = work.length * min(self.windows or work.windows, work.windows)
        left = range(units, units - going, -1)
        passes = sum(count / units * one_by_one(count) for count in left)
        return judging(tokens, passes, sum(left), units, geometry, work) + self.standing_in(geometry, work)

    def plan(self, view: StructureView) -> Plan:
        windows = view.windows[: self.windows]
        settings = {"part": self.part, "windows": len(windows), "ends": [self.keep_first, self.keep_last]}
        name, revision = catalogue.name_of(self), catalogue.revision(self)
        with scanning(view, name, revision, "nll", **settings) as scan:
            free = self.budget.free(self.candidates(view), view.geometry)
            cut = greedy(view, scan, free, self.budget, windows)
        return self.decided(view, cut)
