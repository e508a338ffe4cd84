"""DLP: dynamic layerwise pruning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from harness.catalogue import component
from harness.core.allocation import Allocation, Budget
from harness.core.interfaces import ModelView
from harness.core.metric import wanda_metric
from harness.core.proposals import fit_blocks, min_max_shift
from harness.core.statistic import squared_norms
from harness.runtime.errors import UserError


@component("allocator", "dlp")
@dataclass(frozen=True)
class Dlp:
    """Chen et al. 2025 (arXiv 2505.23807): blocks whose typical Wanda score is low keep more.

    Block l has the importance 1 − m_l / Σ m, with m the median of its scores on the dense model (the paper) or their
    mean (the released code); importances are spread evenly over ± `spread` around the budget. `levels` narrows mixed
    N:M.
    """

    spread: float = 0.15
    """The most that a block's sparsity is away from the budget."""
    statistic: Literal["median", "mean"] = "median"
    """A block's typical score: the median (the paper) or the mean (the released code)."""
    levels: tuple[int, ...] = ()
    """The n of mixed n:M that a matrix may have; empty for all of 0…M."""

    def __post_init__(self) -> None:
        if self.spread < 0:
            raise UserError("allocator.spread has to be at least 0.")

    def allocate(self, view: ModelView, budget: Budget) -> Allocation:
        typical = view.remembered("dlp", {"statistic": self.statistic}, lambda: self._typical(view))
        view.log(score=typical)
        falling = [-score for score in typical]  # 1 − m / Σ m up to a linear map, which the spreading undoes
        return fit_blocks(view, min_max_shift(falling, budget.sparsity, self.spread), budget.narrowed(self.levels))

    def _typical(self, view: ModelView) -> list[float]:
        """The typical score of every block."""
        metrics = (wanda_metric(block) for block in view.observe(squared_norms))
        return [float(metric.median() if self.statistic == "median" else metric.mean()) for metric in metrics]
