"""How much to remove where, fitted to one budget.

An allocator proposes a sparsity per site; `fit` turns proposals into patterns whose parameter-weighted mean is the
budget: by one common shift where any fraction is allowed, by an exact assignment of levels for mixed N:M.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from harness.core.pattern import NofM, Pattern, Unstructured
from harness.runtime.errors import Refusal, UserError

Allocation = Mapping[str, Pattern]

EXACT_STATES = 4_000_000
"""Budgets in at most so many steps are met by an exact search; larger ones by the greedy rule."""


@dataclass(frozen=True)
class Budget:
    """The model-wide fraction of zeros; with `of` = M it is spent in levels n of M, n from `levels`."""

    sparsity: float
    of: int | None = None
    levels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.of is None and self.levels:
            raise UserError("allocator.levels needs a pattern: use it with sparsity=NofM, for example sparsity=2of4.")
        if self.of is not None and not set(self.levels) <= set(range(self.of + 1)):
            raise UserError(f"allocator.levels={list(self.levels)} are not all within 0 to {self.of}.")

    @classmethod
    def of_pattern(cls, pattern: Pattern) -> Budget:
        """The budget that a pattern stands for when an allocator may mix its levels: any n of M."""
        if isinstance(pattern, Unstructured):
            return cls(pattern.sparsity)
        return cls(pattern.sparsity, pattern.of, tuple(range(pattern.of + 1)))

    def narrowed(self, levels: Sequence[int]) -> Budget:
        """The same budget with only these levels; none given leaves it as it is."""
        return replace(self, levels=tuple(sorted(levels))) if levels else self


def mean_sparsity(allocation: Allocation, sizes: Mapping[str, int]) -> float:
    """The parameter-weighted mean that the allocation asks for."""
    total = sum(sizes[site] for site in allocation)
    return sum(pattern.sparsity * sizes[site] for site, pattern in allocation.items()) / total


def fit(
    proposal: Mapping[str, float],
    sizes: Mapping[str, int],
    budget: Budget,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Allocation:
    """Proposed sparsities → patterns with the budget as their mean.

    Args:
        proposal: a fraction per site; values outside 0…1 are clipped after the shift.
        sizes: parameters per site.
        bounds: the least and the most that a site may lose, where any fraction is allowed; they hold the budget.

    Raises:
        Refusal: no assembly of the levels comes within half a level of the budget.
    """
    shifted = _shift(proposal, sizes, budget.sparsity, *bounds)
    if budget.of is None:
        return {site: Unstructured(value) for site, value in shifted.items()}
    return _assign_levels(shifted, sizes, budget)


def _shift(
    proposal: Mapping[str, float], sizes: Mapping[str, int], target: float, least: float, most: float
) -> dict[str, float]:
    """One constant is added to all so that, clipped to the bounds, their weighted mean is the target (bisection)."""
    total = sum(sizes[site] for site in proposal)

    def mean(offset: float) -> float:
        return sum(min(max(value + offset, least), most) * sizes[site] for site, value in proposal.items()) / total

    low, high = target - max(proposal.values()), target + 1 - min(proposal.values())
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if mean(middle) < target else (low, middle)
    return {site: min(max(value + high, least), most) for site, value in proposal.items()}


def _assign_levels(proposal: Mapping[str, float], sizes: Mapping[str, int], budget: Budget) -> Allocation:
    """Levels that follow the proposal from site to site and whose kept weights add up to the budget.

    Rounding each site alone would turn a gentle proposal into a uniform one, so the error of a site is carried to the
    next. The exact sum is then met by the assignment nearest to that one (weighted least squares), out of the two
    levels beside each proposal where that can be, else out of all.
    """
    assert budget.of is not None
    unit = math.gcd(*(sizes[site] for site in proposal))
    widths = {site: sizes[site] // unit for site in proposal}
    wanted = round(sum(widths.values()) * budget.of * (1 - budget.sparsity))
    beside = {site: _beside(budget.of * (1 - proposal[site]), sorted(budget.levels)) for site in proposal}
    dithered = _dithered(proposal, widths, beside, budget.of)
    search = exact_levels if sum(widths.values()) * budget.of < EXACT_STATES else _greedy_levels
    levels = search(dithered, widths, beside, wanted)
    if _kept(levels, widths) != wanted:
        levels = search(dithered, widths, dict.fromkeys(proposal, budget.levels), wanted)
    if abs(_kept(levels, widths) - wanted) > sum(widths.values()) / 2:
        raise Refusal(
            f"no assembly of the levels {list(budget.levels)} of {budget.of} meets {budget.sparsity:.4f} zeros."
        )
    return {site: NofM(level, budget.of) for site, level in levels.items()}


def _kept(levels: Mapping[str, int], widths: Mapping[str, int]) -> int:
    return sum(widths[site] * level for site, level in levels.items())


def _beside(kept: float, choices: Sequence[int]) -> tuple[int, ...]:
    """The levels just below and just above what was proposed to be kept of M, or the nearest end of the levels."""
    below = [level for level in choices if level <= kept]
    above = [level for level in choices if level >= kept]
    return tuple(dict.fromkeys((below or above[:1])[-1:] + (above or below[-1:])[:1]))


def _dithered(
    proposal: Mapping[str, float], widths: Mapping[str, int], beside: Mapping[str, Sequence[int]], of: int
) -> dict[str, int]:
    """The proposal on the grid of levels, the error of every site carried to the next."""
    carried, rounded = 0.0, {}
    for site, width in widths.items():
        kept = width * of * (1 - proposal[site]) + carried
        distances = {abs(kept - width * level): level for level in beside[site]}
        rounded[site] = distances[min(distances)]
        carried = kept - width * rounded[site]
    return rounded


def exact_levels(
    near: Mapping[str, float], widths: Mapping[str, int], allowed: Mapping[str, Sequence[int]], wanted: int
) -> dict[str, int]:
    """One of the allowed levels of each site, by dynamic programming over the sum of kept weights.

    The reachable sum nearest to `wanted` wins, then the smallest distortion of `near` (kept of M).
    """
    limit = sum(width * max(allowed[site]) for site, width in widths.items())
    cost = torch.full((limit + 1,), math.inf, dtype=torch.float64)
    cost[0] = 0
    choices: list[torch.Tensor] = []
    for site, width in widths.items():
        best = torch.full_like(cost, math.inf)
        choice = torch.zeros(limit + 1, dtype=torch.int64)
        for level in allowed[site]:
            step = width * level
            candidate = torch.full_like(cost, math.inf)
            candidate[step:] = cost[: limit + 1 - step] + width * (level - near[site]) ** 2
            choice = torch.where(candidate < best, level, choice)
            best = torch.minimum(candidate, best)
        cost, choices = best, [*choices, choice]
    reachable = torch.isfinite(cost).nonzero().flatten()
    state = int(reachable[(reachable - wanted).abs().argmin()])
    levels = {}
    for (site, width), choice in zip(reversed(list(widths.items())), reversed(choices), strict=True):
        levels[site] = int(choice[state])
        state -= width * levels[site]
    return {site: levels[site] for site in near}


def _greedy_levels(
    near: Mapping[str, int], widths: Mapping[str, int], allowed: Mapping[str, Sequence[int]], wanted: int
) -> dict[str, int]:
    """Single steps away from `near`, cheapest distortion first, while they bring the sum closer."""
    levels = dict(near)
    missing = wanted - _kept(levels, widths)
    while True:
        steps = []
        for site, level in levels.items():
            choices = sorted(allowed[site])
            index = choices.index(level) + (1 if missing > 0 else -1)
            if 0 <= index < len(choices):
                change = widths[site] * (choices[index] - level)
                if abs(missing - change) < abs(missing):
                    steps.append((widths[site] * (choices[index] - near[site]) ** 2, site, choices[index], change))
        if not steps:
            return levels
        _, site, level, change = min(steps)
        levels[site], missing = level, missing - change
