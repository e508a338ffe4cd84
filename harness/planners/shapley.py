"""Depth by what a block or a sub-layer is worth to the output: leave-one-out, or random halves of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from harness import catalogue
from harness.catalogue import component
from harness.core.costs import Cost, Work
from harness.core.depth import DepthPlanner
from harness.core.geometry import Geometry
from harness.core.interfaces import Question, StructureView
from harness.core.scan import judging, one_by_one, scanning
from harness.core.structure import Cut, Plan, Unit
from harness.runtime.errors import Refusal, UserError

METRICS: dict[str, Question] = {"logits": "distance", "loss": "nll"}


@component("planner", "shapley")
@dataclass(frozen=True)
class Shapley(DepthPlanner):
    """Siddiqui et al. 2024 (arXiv 2407.16286), as released: the influence of a unit is mean(d | absent) − mean(d |
    present) over networks that lack some units; units of least influence go, all at once.

    d is the mean Euclidean distance of a network's logits from the full model's, over the L − 1 positions that predict
    a token, or its loss. The networks are, for every window, those without one unit, or random ones with half of all
    units: numpy's `default_rng(draws_seed).choice(n, n // 2, replace=False)`, drawn anew for each window. Without one
    unit each, the order is that of d itself. The authors' scripts take the logits and leave one out, of 25,000 windows.
    """

    metric: Literal["logits", "loss"] = "logits"
    """The measure of a network, d."""
    networks: Literal["leave_one_out", "halves"] = "leave_one_out"
    """The networks that are compared."""
    halves: int = 10
    """Random halves of every window."""
    draws_seed: int = 43
    """The seed of the random halves."""
    windows: int | None = None
    """Calibration windows that are looked at; None: all."""

    uses_cache = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.halves < 1 or (self.windows is not None and self.windows < 1):
            raise UserError("planner.halves and planner.windows have to be at least 1.")

    def cost(self, geometry: Geometry, work: Work) -> Cost:
        """Every network on every window; those without one unit share what is in front of it."""
        units, _ = self.counts(geometry, work)
        tokens = work.length * min(self.windows or work.windows, work.windows)
        networks, passes = units, one_by_one(units)
        if self.networks == "halves":
            networks, passes = self.halves, 0.5 * self.halves + (self.metric == "logits")
        heads = networks * (2 if self.metric == "logits" else 1)  # the full model's logits are made again for each
        return judging(tokens, passes, heads, networks, geometry, work) + self.standing_in(geometry, work)

    def plan(self, view: StructureView) -> Plan:
        units = self.candidates(view)
        present, found = self._measured(view, units)
        lacking = (present.all(dim=0) | ~present.any(dim=0)).nonzero().flatten().tolist()
        if lacking:
            first = units[lacking[0]]
            raise Refusal(
                f"{first.part} {first.block} is present in all random halves or in none; take more calibration windows "
                "or planner.halves."
            )
        return self.lowest(view, dict(zip(units, influences(present, found), strict=True)))

    def _measured(self, view: StructureView, units: Sequence[Unit]) -> tuple[Tensor, Tensor]:
        """Networks as masks of the units that are present (S, units), and their measures (S,)."""
        windows = view.windows[: self.windows]
        settings = {"part": self.part, "networks": self.networks, "windows": len(windows)}
        settings |= {"halves": self.halves, "seed": self.draws_seed} if self.networks == "halves" else {}
        with scanning(view, "shapley", catalogue.revision(self), METRICS[self.metric], **settings) as scan:
            if self.networks == "leave_one_out":
                alone = scan.losses([Cut(frozenset({unit})) for unit in units], windows)  # (units, N)
                return (~torch.eye(len(units), dtype=torch.bool)).repeat(len(windows), 1), alone.T.flatten()
            generator = np.random.default_rng(self.draws_seed)
            drawn = [self._halves(generator, len(units)) for _ in windows]
            cuts = [[_without(units, one) for one in halves] for halves in drawn]
            measures = [scan.losses(some, window) for some, window in zip(cuts, windows.split(1), strict=True)]
            return torch.cat(drawn), torch.cat(measures).flatten()

    def _halves(self, generator: np.random.Generator, count: int) -> Tensor:
        """Random halves (halves, units) of one window: True for the units that are present."""
        present = torch.zeros(self.halves, count, dtype=torch.bool)
        for row in present:
            row[torch.as_tensor(generator.choice(range(count), count // 2, replace=False))] = True
        return present


def _without(units: Sequence[Unit], present: Tensor) -> Cut:
    return Cut(frozenset(unit for unit, stays in zip(units, present.tolist(), strict=True) if not stays))


def influences(present: Tensor, measures: Tensor) -> list[float]:
    """mean(d | absent) − mean(d | present) of each unit, from networks (S, units) and their measures (S,)."""
    there, gone = present.double(), (~present).double()
    means = [(mask * measures[:, None]).sum(dim=0) / mask.sum(dim=0) for mask in (gone, there)]
    return (means[0] - means[1]).tolist()
