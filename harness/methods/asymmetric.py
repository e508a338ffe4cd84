"""Asymmetric calibration: a pruned model's outputs are fitted to the dense model's, whatever the inputs have become.

Shapes: O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from harness.catalogue import component
from harness.core.costs import Cost, Work, observing
from harness.core.geometry import Geometry
from harness.core.interfaces import Difference, GroupedMethod, LinearMethod, Pruned, ReferencedView, Site
from harness.core.pattern import Pattern
from harness.core.statistic import gram
from harness.methods.alps import ALPS
from harness.runtime.errors import UserError


@component("method", "asymmetric")
@dataclass(frozen=True)
class Asymmetric:
    """Any method that prunes one matrix, started from the weights that undo what pruning did to its inputs.

    Behind pruned matrices an input is x where the dense model has x̄. Instead of W x, a matrix is fitted to

        t = W x + α W (x̄ − x) + β (r̄ − r),

    the last term where its outputs are added to a residual stream r. The least-squares answer without zeros is
    W* = W + (α W Σ(x̄ − x)xᵀ + β Σ(r̄ − r)xᵀ) (G + λI)⁻¹ with G = Σ x xᵀ; since ‖t − Ŵx‖² is tr((Ŵ − W*) G (Ŵ − W*)ᵀ) up
    to a constant, the inner method prunes W* as it would prune W. Matrices go in the order in which the block runs
    them, each group seeing the earlier ones pruned.

    α = 1, β = 0 is the target of GPTAQ's asymmetric calibration (Li et al. 2025, arXiv 2504.02692), α the propagation
    strength of QEP (Arai and Ichikawa 2025, arXiv 2504.09629), both for quantization; β is ours. The defaults were
    chosen on held-out calibration windows (LOG.md, "Beyond ALPS"). λ is `damping` times the mean diagonal of G.
    """

    inner: Any = field(default_factory=ALPS, metadata={"component": "method"})
    """The method that prunes the fitted weights."""
    alpha: float = 0.75
    """α: the share of the inputs' change that is undone."""
    beta: float = 0.5
    """β: the share of the residual stream's change that is undone."""
    damping: float = 0.01
    """λ in units of the mean diagonal of the Gram matrix."""

    statistic = gram
    beside_dense = True

    def __post_init__(self) -> None:
        if not (0 <= self.alpha <= 1 and 0 <= self.beta <= 1):
            raise UserError("method.alpha and method.beta have to be between 0 and 1.")
        if self.damping <= 0:
            raise UserError("method.damping has to be above 0.")
        if not isinstance(self.inner, LinearMethod):
            raise UserError("method.inner has to prune one matrix at a time, not a whole block; take another one.")

    def refuses(self, pattern: Pattern, shape: tuple[int, int]) -> str | None:
        return self.inner.refuses(pattern, shape)

    def cost(self, geometry: Geometry, work: Work) -> Cost:
        """The dense model's hidden states; the sums of the widest input and what is solved with them, and the block's
        dense weights; the products of the inner method."""
        hidden, wide = geometry.hidden, geometry.wide
        block = 4 * hidden**2 + (geometry.readers + 1) * hidden * wide
        stats = replace(
            observing(self.statistic, geometry, work),
            kept_bytes=work.tokens * hidden * work.itemsize,
            working_bytes=4 * (4 * max(hidden, wide) ** 2 + 3 * hidden * wide) + 4 * block,
        )
        return stats + self.inner.cost(geometry, work).arithmetic()

    @torch.no_grad()
    def prune_block(self, block: ReferencedView, patterns: Mapping[Site, Pattern]) -> dict[Site, Pruned]:
        pruned: dict[Site, Pruned] = {}
        for group in block.groups:
            difference = block.difference(group)
            stats = self._stats(block, group, difference)
            dense, asked = [block.weights[site] for site in group], [patterns[site] for site in group]
            targets = [
                self._target(weight, difference) if pattern.sparsity else weight
                for weight, pattern in zip(dense, asked, strict=True)
            ]
            for site, weight, result in zip(group, dense, self._pruned(targets, stats, asked), strict=True):
                pruned[site] = result._replace(weight=result.weight.to(weight.dtype), unseen=difference.gram.dead)
                block.write(site, pruned[site].weight)
        return {site: pruned[site] for site in patterns}

    def _pruned(self, targets: Sequence[Tensor], stats: Any, patterns: Sequence[Pattern]) -> Sequence[Pruned]:
        """Results of the inner method for matrices that read the same inputs, in one go where it can."""
        if isinstance(self.inner, GroupedMethod):
            results = self.inner.prune_together(targets, stats, patterns)
            if all(result.ok is None or bool(result.ok) for result in results):
                return [result._replace(ok=None) for result in results]
        return [self.inner.prune(target, stats, pattern) for target, pattern in zip(targets, patterns, strict=True)]

    def _stats(self, block: ReferencedView, group: tuple[Site, ...], difference: Difference) -> Any:
        """Statistics of the inputs for the inner method."""
        statistic = self.inner.statistic
        if statistic in (None, gram):
            return statistic and difference.gram
        return block.observe(dict.fromkeys(group, statistic))[group[0]]

    def _target(self, weight: Tensor, difference: Difference) -> Tensor:
        """W* (O, I) in float32."""
        dense = weight.float()
        sums = self.alpha * (dense @ difference.shift)
        if difference.drift is not None:
            sums += self.beta * difference.drift
        return dense + sums @ difference.gram.damped_inverse(self.damping).matrix
