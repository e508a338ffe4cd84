"""Depth by how little a block or a sub-layer changes the hidden states that pass through it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from harness.catalogue import component
from harness.core.costs import Cost, Work
from harness.core.depth import DepthPlanner
from harness.core.geometry import Geometry
from harness.core.interfaces import StructureView
from harness.core.structure import Plan, Unit

Metric = Literal["cosine", "relative_l1", "relative_l2"]


@component("planner", "block_influence")
@dataclass(frozen=True)
class BlockInfluence(DepthPlanner):
    """Men et al. 2024, ShortGPT (arXiv 2403.03853), eq. 1: the block influence, 1 − mean cos(h, h′), where h is in
    front of a block and h′ behind it; the blocks of least influence go, all at once.

    Siddiqui et al. 2024 (arXiv 2407.16286) compare it with the relative update, mean ‖h′ − h‖ / ‖h‖ in the L1 or L2
    norm, and apply both to sub-layers: each is measured across its own residual addition and goes with its norm. Means
    are over all positions of a window, the first one too, and then over windows.
    """

    metric: Metric = "cosine"
    """How a change of the hidden states is measured."""

    def cost(self, geometry: Geometry, work: Work) -> Cost:
        """One pass over the calibration windows, and what stands in for the units that go."""
        return self.passing(geometry, work) + self.standing_in(geometry, work)

    def plan(self, view: StructureView) -> Plan:
        return self.lowest(view, self._scores(view))

    def _scores(self, view: StructureView) -> dict[Unit, float]:
        """The influence of every unit that may go, in the order in which the model runs them."""
        means: dict[Unit, list[Tensor]] = defaultdict(list)
        wanted = set(self.candidates(view))
        for unit, before, behind in view.hidden("block" if self.part == "block" else "sublayer"):
            if unit in wanted:
                means[unit].append(influence(before, behind, self.metric).double().mean(dim=1))  # (N,)
        return {unit: float(torch.cat(found).mean()) for unit, found in means.items()}


def influence(before: Tensor, behind: Tensor, metric: Metric) -> Tensor:
    """How much hidden states (N, L, D) change at each position (N, L)."""
    if metric == "cosine":
        return 1 - functional.cosine_similarity(before, behind, dim=-1)
    order = 1 if metric == "relative_l1" else 2
    return (behind - before).norm(order, dim=-1) / before.norm(order, dim=-1)
