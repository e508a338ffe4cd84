"""ISC's mixed sparsity: a linear ramp over the ranks of Hessian traces."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.allocators.candidates import Sensitivity, block_prefix, ranks, sensitivity_of
from harness.catalogue import component
from harness.core.allocation import Allocation, Budget, fit
from harness.core.interfaces import ModelView
from harness.core.pattern import Unstructured
from harness.core.proposals import Granularity, sizes, to_sites, units_of
from harness.runtime.errors import Refusal, UserError

RELEASED_LOWEST = {"matrix": 0.4, "block": 0.3}
"""The released code's smallest value of its ramp, whatever the sparsity."""


@component("allocator", "isc")
@dataclass(frozen=True)
class Isc:
    """Shao et al. 2024 (arXiv 2310.09499), eqs. 5 and 6, algorithm 1.

    The share of weights kept rises with the rank of the sensitivity, from 1 − S − `spread` to 1 − S + `spread` (the
    paper's α), and is fitted to the budget by size. Sensitivity: trace of the loss's Hessian over the number of its
    diagonal elements, per matrix, or summed over a block's matrices. `sensitivity=fisher` takes the Fisher trace.

    `variant=released` is the authors' code (talkking/MixGPT@3c4726a): one window, one Rademacher probe, |trace| not
    divided by size, ranks over the norm weights too, a ramp that starts at 0.4 (0.3 per block, whose ramp is one of
    densities with mean S) whatever S, and no fit: zeros are 0.48 where 0.5 is asked, and inverted above 0.6.
    """

    spread: float = 0.1
    """The paper's α: the most that a unit's share of kept weights is away from the budget's."""
    granularity: Granularity = "matrix"
    """The units that have a sparsity of their own."""
    sensitivity: Sensitivity = "hessian"
    """Trace of the loss's Hessian, or of the Fisher information."""
    windows: int = 16
    """Calibration windows of the trace."""
    probes: int = 4
    """Rademacher probes of a Hessian trace."""
    variant: Literal["default", "released"] = "default"
    """`released`: what the authors' code does where it differs."""
    levels: tuple[int, ...] = ()
    """The n of mixed n:M that a matrix may have; empty for all of 0…M."""

    uses_cache = True
    asks_for_traces = True

    def __post_init__(self) -> None:
        if self.spread < 0 or self.windows < 1 or self.probes < 1:
            raise UserError("allocator.spread has to be at least 0, allocator.windows and allocator.probes at least 1.")

    def allocate(self, view: ModelView, budget: Budget) -> Allocation:
        if self.variant == "released":
            return self._released(view, budget)
        weights = sizes(view)
        traces = sensitivity_of(view, self.sensitivity, self.windows, self.probes)
        means = {site: traces[site].value / size for site, size in weights.items()}
        units = units_of(view.blocks, self.granularity)
        ramp = _ramp([sum(means[site] for site in unit) for unit in units], budget.sparsity, self.spread)
        return fit(to_sites(units, ramp), weights, budget.narrowed(self.levels))

    def _released(self, view: ModelView, budget: Budget) -> Allocation:
        """As the code has it, the mean being what it comes to.

        Raises:
            Refusal: with N:M, which the code has not, or where its ramp per block has no step (it fails there).
        """
        if budget.of is not None:
            raise Refusal("allocator.variant=released of isc has no N:M; take the default variant")
        traces = {site: abs(trace.value) for site, trace in view.hessian_trace(1, 1, "rademacher").items()}
        densities = self._released_blocks if self.granularity == "block" else self._released_matrices
        kept = densities(view, traces, budget.sparsity)
        return {site: Unstructured(min(max(1 - kept[site], 0.0), 1.0)) for site in view.shapes}

    def _released_matrices(self, view: ModelView, traces: Mapping[str, float], sparsity: float) -> dict[str, float]:
        everything = sorted(traces.values())
        lowest, highest = RELEASED_LOWEST["matrix"], 2 * (1 - sparsity) - RELEASED_LOWEST["matrix"]
        slope = (highest - lowest) / (len(everything) - 1)
        return {site: lowest + slope * bisect_left(everything, traces[site]) for site in view.shapes}

    def _released_blocks(self, view: ModelView, traces: Mapping[str, float], sparsity: float) -> dict[str, float]:
        count, lowest = len(view.blocks), RELEASED_LOWEST["block"]
        step = 2 * (sparsity - lowest) / (count - 1) if count > 1 else 0.0
        if not 0 < step <= (1 - lowest) / max(1, count - 1):
            raise Refusal(f"the released ramp of isc per block has no step at {sparsity:g} zeros, where its code fails")
        heads = [block_prefix(block) for block in view.blocks]
        sums = [sum(value for site, value in traces.items() if site.startswith(head)) for head in heads]
        return to_sites(view.blocks, [lowest + step * rank for rank in ranks(sums)])


def _ramp(sensitivities: Sequence[float], sparsity: float, spread: float) -> list[float]:
    """Zeros from S + spread for the least sensitive unit to S − spread for the most."""
    last = max(1, len(sensitivities) - 1)
    return [sparsity + spread - 2 * spread * rank / last for rank in ranks(sensitivities)]
