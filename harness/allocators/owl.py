"""OWL: outlier-weighed layerwise sparsity."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from harness.catalogue import component
from harness.core.allocation import Allocation, Budget
from harness.core.interfaces import ModelView
from harness.core.metric import wanda_metric
from harness.core.proposals import fit_blocks, min_max_shift
from harness.core.statistic import squared_norms
from harness.runtime.errors import UserError


@component("allocator", "owl")
@dataclass(frozen=True)
class Owl:
    """Yin et al. 2024 (arXiv 2310.05175): blocks with more outliers keep more.

    An outlier is a Wanda score above `threshold` times the mean score of its block, on the dense model; the shares of
    outliers are spread evenly over ± `spread` around the budget. `levels` narrows mixed N:M.
    """

    spread: float = 0.08
    """The most that a block's sparsity is away from the budget."""
    threshold: float = 5.0
    """M: outliers are scores above so many times their block's mean."""
    levels: tuple[int, ...] = ()
    """The n of mixed n:M that a matrix may have; empty for all of 0…M."""

    revision = 2  # 1: a plain sum of squares

    def __post_init__(self) -> None:
        if self.spread < 0 or self.threshold <= 0:
            raise UserError("allocator.spread has to be at least 0 and allocator.threshold above 0.")

    def allocate(self, view: ModelView, budget: Budget) -> Allocation:
        shares = view.remembered("owl", {"threshold": self.threshold}, lambda: self._shares(view))
        view.log(score=shares)
        return fit_blocks(view, min_max_shift(shares, budget.sparsity, self.spread), budget.narrowed(self.levels))

    def _shares(self, view: ModelView) -> list[float]:
        return [self._outliers(wanda_metric(block)) for block in view.observe(squared_norms)]

    def _outliers(self, scores: Tensor) -> float:
        """The fraction of a block's scores that are outliers."""
        return float((scores > self.threshold * scores.mean()).double().mean())
