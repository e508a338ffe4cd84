"""MRP: maximum redundancy pruning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.catalogue import component
from harness.core.allocation import Allocation, Budget, fit
from harness.core.costs import Cost, Work, block_bytes
from harness.core.geometry import Geometry
from harness.core.interfaces import BlockView, ModelView
from harness.core.metric import wanda_scores
from harness.core.pattern import Unstructured
from harness.core.proposals import Granularity, sizes, to_sites, units_of
from harness.core.statistic import squared_norms
from harness.runtime.errors import UserError

AGAIN = 0.6
"""The share of the forwards of turns that are run, about: a turn begins where it first differs from the last one."""
Units = Sequence[Sequence[str]]
"""The sites that lose the same."""


@component("allocator", "mrp")
@dataclass(frozen=True)
class Mrp:
    """Gao et al. 2025 (arXiv 2503.18377), assembled from the released code, whose loop is switched off.

    Every unit starts at S − `headroom` zeros. The unit with the fewest outliers among its kept weights is the most
    redundant: it loses `step` more (times `decay` at every turn, `least_step` at least), and the model is pruned again
    by the run's own method, until the budget is met; no unit goes beyond `maximum` (null: S + `headroom`), but levels
    n:M are fitted afterwards. Per matrix, as many go a turn as a block has. Outliers are Wanda scores of the pruned
    model above `threshold` times the mean score of their unit on the dense one. Steps, start and limit are our choice:
    the paper's could not be read.
    """

    headroom: float = 0.15
    """How far below the budget every unit starts."""
    step: float = 0.05
    """Fraction the most redundant unit loses at a turn."""
    decay: float = 1.0
    """The factor of the step at every turn."""
    least_step: float = 0.05
    """The step at least."""
    threshold: float = 5.0
    """Outliers are scores above so many times the dense unit's mean."""
    maximum: float | None = None
    """The sparsity of a unit at most; null: the budget and `headroom`."""
    granularity: Granularity = "block"
    """The units that have a sparsity of their own."""
    levels: tuple[int, ...] = ()
    """The n of mixed n:M that a matrix may have; empty for all of 0…M."""

    def __post_init__(self) -> None:
        if self.headroom < 0 or self.threshold <= 0 or not 0 < self.decay <= 1:
            raise UserError(
                "allocator.headroom has to be at least 0, allocator.threshold above 0, allocator.decay above 0 and at "
                "most 1."
            )
        if self.step <= 0 or self.least_step <= 0 or not 0 <= (self.maximum or 0) <= 1:
            raise UserError(
                "allocator.step and allocator.least_step have to be above 0, allocator.maximum from 0 to 1 (or null)."
            )

    def cost(self, geometry: Geometry, work: Work) -> Cost:
        """A pruning and an observation a turn; the dense matrices, which are put back."""
        turns = work.blocks * self.headroom / self.step
        return Cost(forwards=AGAIN * 2 * work.tokens * turns, kept_bytes=block_bytes(geometry, work))

    def allocate(self, view: ModelView, budget: Budget) -> Allocation:
        asked = budget.sparsity
        highest = min(asked + self.headroom, 1.0) if self.maximum is None else self.maximum
        if highest < asked:
            raise UserError(f"allocator.maximum={highest:g} is below the {asked:g} zeros that are asked for.")
        weights, units = sizes(view), units_of(view.blocks, self.granularity)
        limits = self._limits(view, units)
        zeros = [max(asked - self.headroom, 0.0)] * len(units)
        outliers: dict[int, float] = {}
        turn = 0
        while missing := self._missing(zeros, units, weights, asked):
            turn += 1
            outliers |= self._outliers(view, units, zeros, limits, reuse_prefix=turn > 1)
            shares = [outliers[unit] / max(1 - value, 1e-9) for unit, value in enumerate(zeros)]
            below = [unit for unit, value in enumerate(zeros) if value < highest - 1e-9]
            open_units = sorted(below, key=lambda unit: (shares[unit], unit))
            size = max(self.step * self.decay**turn, self.least_step)
            for unit in open_units[: 1 if self.granularity == "block" else len(view.blocks[0])]:
                weight = sum(weights[site] for site in units[unit])
                more = min(size, highest - zeros[unit], missing / weight)
                zeros[unit] = round(zeros[unit] + more, 12)
                missing -= more * weight
                if missing <= 1e-9 * weight:
                    break
        view.log(turns=turn)
        return fit(to_sites(units, zeros), weights, budget.narrowed(self.levels))

    def _missing(self, zeros: Sequence[float], units: Units, weights: Mapping[str, int], asked: float) -> float:
        """Weights still to go; zero where rounding is all that is left."""
        proposal, total = to_sites(units, zeros), sum(weights.values())
        missing = asked * total - sum(proposal[site] * size for site, size in weights.items())
        return missing if missing > 1e-7 * total else 0.0

    def _limits(self, view: ModelView, units: Units) -> list[float]:
        """The score above which a weight is an outlier, per unit, from the dense model."""
        means = view.remembered("mrp", {"granularity": self.granularity}, lambda: _means(view, units))
        return [self.threshold * mean for mean in means]

    def _outliers(
        self, view: ModelView, units: Units, zeros: Sequence[float], limits: Sequence[float], *, reuse_prefix: bool
    ) -> dict[int, float]:
        """The fraction of outliers among the weights of a unit, as the model is with these zeros.

        Args:
            reuse_prefix: only those units need be there that are not as they were at the last turn.
        """
        patterns = {site: Unstructured(value) for site, value in to_sites(units, zeros).items()}
        return {
            unit: float((score > limits[unit]).double().mean())
            for block in view.pruned(view.method, patterns, reuse_prefix=reuse_prefix)
            for unit, score in _unit_scores(block, units)
        }


def _means(view: ModelView, units: Units) -> list[float]:
    """The mean score of every unit of the dense model."""
    return [float(score.mean()) for block in view.observe(squared_norms) for _, score in _unit_scores(block, units)]


def _unit_scores(block: BlockView, units: Units) -> list[tuple[int, Tensor]]:
    """The Wanda scores of every unit that lies in the block, with its number."""
    scores = wanda_scores(block)
    inside = [(number, unit) for number, unit in enumerate(units) if unit[0] in scores]
    return [(number, torch.cat([scores[site].flatten() for site in unit])) for number, unit in inside]
