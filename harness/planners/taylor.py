"""Depth by the weights of a block or a sub-layer: times their gradients, or alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from harness.catalogue import component
from harness.core.costs import Cost, Work, fisher_trace
from harness.core.depth import DepthPlanner
from harness.core.geometry import Geometry
from harness.core.interfaces import Site, StructureView
from harness.core.structure import Plan
from harness.runtime.errors import UserError


@component("planner", "taylor")
@dataclass(frozen=True)
class Taylor(DepthPlanner):
    """Kim et al. 2024, Shortened LLaMA (arXiv 2402.02834), eq. 2: Σ |w · ∂L/∂w| over the weights of a unit, those of
    its norms too, where L is the mean loss of some windows; with `planner.score=weight` their magnitude, Σ |w|. The
    units of the lowest sums go, all at once.

    The first four blocks and the last two stay, as in the authors' code: sums rank block 0 as the least important one,
    and a LLaMA without it has a perplexity of thousands. Biases and embeddings are left out. The authors take 10
    samples of 128 tokens of BookCorpus, in one batch.
    """

    keep_first: int = 4
    keep_last: int = 2
    score: Literal["gradient", "weight"] = "gradient"
    """The term of a weight: its product with its gradient, or itself."""
    windows: int | None = 10
    """Calibration windows that are looked at; None: all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.windows is not None and self.windows < 1:
            raise UserError("planner.windows has to be at least 1.")

    @property
    def needs_calibration(self) -> bool:
        """True if it looks at calibration windows."""
        return self.score == "gradient" or self.update == "mean"

    def cost(self, geometry: Geometry, work: Work) -> Cost:
        """Forward to the last block, and back block by block, each running forward once more; states between them."""
        found = self.standing_in(geometry, work)
        if self.score == "gradient":
            windows = min(self.windows or work.windows, work.windows)
            states = 4 * geometry.blocks * windows * work.length * geometry.hidden
            found += fisher_trace(windows, geometry, work) + Cost(kept_bytes=states)
        return found

    def plan(self, view: StructureView) -> Plan:
        units = self.candidates(view)
        sums = self._sums(view)
        return self.lowest(view, {unit: sum(sums[site] for site in view.sites_of(unit)) for unit in units})

    def _sums(self, view: StructureView) -> Mapping[Site, float]:
        """The sum of the terms of each matrix and norm in scope."""
        if self.score == "weight":
            return {site: _sum(weight) for held in (view.weights, view.norms) for site, weight in held.items()}
        return {
            site: _sum(weight * block.gradients[site])
            for block in view.gradients(view.windows[: self.windows])
            for site, weight in block.weights.items()
        }


def _sum(terms: Tensor) -> float:
    return float(terms.abs().sum(dtype=torch.float64))
