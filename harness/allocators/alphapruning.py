"""AlphaPruning: the heavier the tail of a block's spectra, the more it keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from torch import Tensor

from harness.catalogue import component
from harness.core.allocation import Allocation, Budget, fit
from harness.core.interfaces import ModelView, Site
from harness.core.proposals import Granularity, sizes, to_sites
from harness.core.spectrum import power_law_exponent
from harness.runtime.errors import Refusal, UserError


@component("allocator", "alphapruning")
@dataclass(frozen=True)
class AlphaPruning:
    """Lu et al. 2024 (arXiv 2410.10912): high exponents α of the spectra, light tails, lose more; without data.

    The α of a matrix, or of a block the mean of its matrices (`granularity`), is mapped linearly to 1 − `epsilon` …
    1 + `epsilon` and scaled to the budget; where a sparsity would exceed 1, theirs does, ours is clipped and all others
    shifted. `levels` narrows mixed N:M.
    """

    epsilon: float = 0.3
    """Half the spread of the factors that sparsities are scaled by."""
    granularity: Granularity = "block"
    """The units that have a sparsity of their own."""
    levels: tuple[int, ...] = ()
    """The n of mixed n:M that a matrix may have; empty for all of 0…M."""

    needs_calibration = False

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon <= 1:
            raise UserError("allocator.epsilon has to be between 0 and 1.")

    def allocate(self, view: ModelView, budget: Budget) -> Allocation:
        exponents = view.remembered("alphapruning", {}, lambda: _exponents(view.weights), calibrated=False)
        means = [fmean(exponents[site] for site in sites) for sites in view.blocks]
        view.log(score=means)
        scores = to_sites(view.blocks, means) if self.granularity == "block" else exponents
        proposal = scaled_to_budget(scores, sizes(view), budget.sparsity, self.epsilon)
        return fit(proposal, sizes(view), budget.narrowed(self.levels))


def _exponents(weights: Mapping[Site, Tensor]) -> dict[Site, float]:
    return {site: _exponent(site, weight) for site, weight in weights.items()}


def _exponent(site: Site, weight: Tensor) -> float:
    exponent = power_law_exponent(weight)
    if not math.isfinite(exponent):
        raise Refusal(f"the spectrum of {site} has no tail, so AlphaPruning has no number for it; use allocator=owl.")
    return exponent


def scaled_to_budget(
    scores: Mapping[Site, float], sizes: Mapping[Site, int], target: float, epsilon: float
) -> dict[Site, float]:
    """Scores mapped to 1 − ε … 1 + ε, times what makes the target their mean weighted by size."""
    low, high = min(scores.values()), max(scores.values())
    extent = high - low
    places = {site: (score - low) / extent if extent > 0 else 0.5 for site, score in scores.items()}  # 0 … 1
    relative = {site: place * 2 * epsilon + 1 - epsilon for site, place in places.items()}
    factor = target * sum(sizes[site] for site in scores) / sum(sizes[site] * relative[site] for site in scores)
    return {site: value * factor for site, value in relative.items()}
