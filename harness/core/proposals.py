"""From scores of blocks to a proposal for every site, and from there to an allocation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch

from harness.core.allocation import Allocation, Budget, fit
from harness.core.interfaces import ModelView, Site

Granularity = Literal["block", "matrix"]
"""The unit of one sparsity."""


def min_max_shift(scores: Sequence[float], target: float, spread: float) -> list[float]:
    """OWL's rule: densities linear in the scores, the most 2 · `spread` above the least, with the target as mean.

    What comes back are sparsities; a higher score keeps more, equal scores all have the target.
    """
    score = torch.tensor(scores, dtype=torch.float64)
    extent = score.max() - score.min()
    density = (score - score.min()) / extent * 2 * spread if extent > 0 else torch.zeros_like(score)
    return (target - (density - density.mean())).tolist()


def to_sites(units: Iterable[Sequence[Site]], values: Iterable[float]) -> dict[Site, float]:
    """One value per unit, such as a block → that value at each of its sites."""
    return {site: value for sites, value in zip(units, values, strict=True) for site in sites}


def units_of(blocks: Sequence[Sequence[Site]], by: Granularity) -> tuple[tuple[Site, ...], ...]:
    """The sites that go together: those of a block, or each by itself."""
    return tuple(tuple(block) for block in blocks) if by == "block" else tuple((s,) for block in blocks for s in block)


def sizes(view: ModelView) -> dict[Site, int]:
    """The number of weights of every site in scope."""
    return {site: outputs * inputs for site, (outputs, inputs) in view.shapes.items()}


def fit_blocks(view: ModelView, sparsities: Sequence[float], budget: Budget) -> Allocation:
    """A sparsity per block, fitted to the budget."""
    return fit(to_sites(view.blocks, sparsities), sizes(view), budget)
