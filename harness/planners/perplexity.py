"""Depth by the loss of the model without each block or sub-layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from harness import catalogue
from harness.catalogue import component
from harness.core.costs import Cost, Work
from harness.core.depth import DepthPlanner
from harness.core.geometry import Geometry
from harness.core.interfaces import StructureView
from harness.core.scan import judging, one_by_one, scanning
from harness.core.structure import Cut, Plan
from harness.runtime.errors import UserError


@component("planner", "perplexity")
@dataclass(frozen=True)
class Perplexity(DepthPlanner):
    """Kim et al. 2024, Shortened LLaMA (arXiv 2402.02834), its PPL criterion: the perplexity of the model without a
    unit, exp of the mean loss over all tokens of some windows; the units without which it is lowest go, all at once.

    As in the authors' scripts, the first four blocks and the last two stay. The authors take 10 samples of 128 tokens
    of BookCorpus.
    """

    keep_first: int = 4
    keep_last: int = 2
    windows: int | None = 10
    """Calibration windows that are looked at; None: all."""

    uses_cache = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.windows is not None and self.windows < 1:
            raise UserError("planner.windows has to be at least 1.")

    def cost(self, geometry: Geometry, work: Work) -> Cost:
        """The model without each unit on every window; what is in front of the unit runs once."""
        units, _ = self.counts(geometry, work)
        tokens = work.length * min(self.windows or work.windows, work.windows)
        return judging(tokens, one_by_one(units), units, units, geometry, work) + self.standing_in(geometry, work)

    def plan(self, view: StructureView) -> Plan:
        units, windows = self.candidates(view), view.windows[: self.windows]
        settings = {"part": self.part, "windows": len(windows)}
        with scanning(view, "perplexity", catalogue.revision(self), "nll", **settings) as scan:
            losses = scan.losses([Cut(frozenset({unit})) for unit in units], windows).mean(dim=1).tolist()
        scores = [math.exp(min(loss, 700.0)) if math.isfinite(loss) else math.inf for loss in losses]
        return self.lowest(view, dict(zip(units, scores, strict=True)))
