"""OWL: outlier-weighed layerwise sparsity."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from harness.catalogue import component
from harness.core.allocation import Allocation, Budget, fit
from harness.core.errors import UserError
from harness.core.interfaces import BlockView, Probe
from harness.core.statistic import norms


@component("allocator", "owl")
@dataclass(frozen=True)
class Owl:
    """Yin et al. 2024 (arXiv 2310.05175): blocks with more outliers keep more.

    An outlier is a Wanda score above `threshold` times the mean score of its block, on the dense model; the shares of
    outliers are spread evenly over ± `spread` around the budget. `levels` narrows mixed N:M.
    """

    spread: float = 0.08
    threshold: float = 5.0
    levels: tuple[int, ...] = ()

    revision = 2  # 1: a plain sum of squares

    def __post_init__(self) -> None:
        if self.spread < 0 or self.threshold <= 0:
            raise UserError("allocator.spread has to be at least 0 and allocator.threshold above 0.")

    def allocate(self, probe: Probe, budget: Budget) -> Allocation:
        shares = torch.tensor([self._outliers(block) for block in probe.observe(norms)], dtype=torch.float64)
        extent = shares.max() - shares.min()
        density = (shares - shares.min()) / extent * 2 * self.spread if extent > 0 else torch.zeros_like(shares)
        sparsities = budget.sparsity - (density - density.mean())
        proposal = {
            site: float(sparsity) for sites, sparsity in zip(probe.blocks, sparsities, strict=True) for site in sites
        }
        sizes = {site: rows * columns for site, (rows, columns) in probe.shapes.items()}
        return fit(proposal, sizes, budget.narrowed(self.levels))

    def _outliers(self, block: BlockView) -> float:
        """The fraction of a block's scores that are outliers."""
        seen = block.observe(norms)
        scores = torch.cat(
            [(weight.abs() * seen[site].mean.sqrt()).flatten() for site, weight in block.weights.items()]
        )
        return float((scores > self.threshold * scores.mean()).double().mean())
