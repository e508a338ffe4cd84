"""SparseGPT: optimal brain surgeon, a column at a time.

Shapes: O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Literal

import torch
from torch import Tensor

from harness.catalogue import component
from harness.core.columns import prune_columns, spare_dead
from harness.core.interfaces import Pruned
from harness.core.linalg import Factor, Inverse
from harness.core.pattern import NofM, Pattern
from harness.core.refit import refittable
from harness.core.statistic import Gram, gram
from harness.runtime.errors import UserError

Divisor = Callable[[Inverse | Factor], Tensor]
Dead = Literal["prune", "keep"]
"""The fate of weights whose input calibration never saw: all go, or as many as the quota lets."""
LATER = {"identity": "unless default"}
"""A setting that came later: at its default, a run is the one that it was before."""


@component("method", "sparsegpt")
@dataclass(frozen=True)
@refittable
class SparseGPT:
    """Frantar and Alistarh 2023 (arXiv 2301.00774), algorithm 1.

    A column block is one comparison group; inside it, removed weights are compensated by the columns to their right.
    As in the authors' code: inputs never seen lose all their weights, however many were asked for, and a block's
    threshold itself is removed. With `dead=keep` such weights go first too, the smallest before all others, but within
    the quota of their column block (or of their M weights); the rest of them stays dense, and what happens to all
    other weights is the same. Rounding decides masks where the Gram matrix is ill-conditioned, so every product here
    is rounded as theirs is, unless the sums were taken in another order already (`numerics=fast` in 16 bits on a GPU).
    """

    damping: float = 0.01
    """The term added to the diagonal of the Gram matrix, in units of its mean."""
    blocksize: int = 128
    """Columns of a comparison group."""
    dead: Dead = field(default="prune", metadata=LATER)
    """`keep`: inputs never seen lose no more weights than the quota."""

    statistic = gram

    def __post_init__(self) -> None:
        if self.damping <= 0 or self.blocksize < 1:
            raise UserError("method.damping has to be above 0 and method.blocksize at least 1.")

    def refuses(self, pattern: Pattern, shape: tuple[int, int]) -> str | None:
        if isinstance(pattern, NofM) and self.blocksize % pattern.of and self.blocksize < shape[1]:
            return f"method.blocksize={self.blocksize} is not divisible by {pattern.of}, as the pattern {pattern} needs"
        return None

    @torch.no_grad()
    def prune(self, weight: Tensor, stats: Gram, pattern: Pattern) -> Pruned:
        return self.prune_by(obs, weight, stats, pattern)

    @torch.no_grad()
    def prepare(self, stats: Gram) -> None:
        if stats.fast:
            stats.prepare(self.damping)

    @torch.no_grad()
    def prune_together(self, weights: Sequence[Tensor], stats: Gram, patterns: Sequence[Pattern]) -> list[Pruned]:
        return self.prune_together_by(obs, weights, stats, patterns)

    def prune_by(self, divisor: Divisor, weight: Tensor, stats: Gram, pattern: Pattern) -> Pruned:
        """The same walk for any score of the form w² over a `divisor` (I,) that follows from the damped inverse."""
        if pattern.sparsity == 0:
            return Pruned(weight.clone(), torch.ones_like(weight, dtype=torch.bool))
        inverse = stats.damped_inverse(self.damping)
        work, kept = self._walk(divisor(inverse), [weight], stats, [pattern], inverse.factor)
        note = "" if inverse.damping == self.damping else f"damping {inverse.damping:g}"
        return Pruned(work.to(weight.dtype), kept, note)

    def prune_together_by(
        self, divisor: Divisor, weights: Sequence[Tensor], stats: Gram, patterns: Sequence[Pattern]
    ) -> list[Pruned]:
        """Matrices that read the same inputs in one walk, the GPU never waited for; rounded as `stats` allows.

        Where it was summed as the released code sums, or the patterns do not go together, each matrix goes alone.
        """
        if not stats.fast or min(pattern.sparsity for pattern in patterns) == 0 or len(set(map(str, patterns))) > 1:
            return [self.prune_by(divisor, *item) for item in zip(weights, repeat(stats), patterns)]
        unchecked = stats.unchecked_factor(self.damping)
        work, kept = self._walk(divisor(unchecked), weights, stats, patterns, unchecked.factor)
        sizes = [len(weight) for weight in weights]
        parts = zip(work.to(weights[0].dtype).split(sizes), kept.split(sizes), strict=True)
        return [Pruned(weight, stays, ok=unchecked.ok) for weight, stays in parts]

    def _walk(
        self, divisors: Tensor, weights: Sequence[Tensor], stats: Gram, patterns: Sequence[Pattern], factor: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The pruned weights and what was kept of all matrices (O, I), one above the other; from left to right."""
        sizes = [len(weight) for weight in weights]
        dense = (weights[0] if len(weights) == 1 else torch.cat(list(weights))).float()
        work = dense.masked_fill(stats.dead, 0)
        kept = torch.empty_like(work, dtype=torch.bool)
        for start in range(0, work.shape[1], self.blocksize):
            columns = slice(start, start + self.blocksize)
            pruned, errors, kept[:, columns] = prune_columns(
                work[:, columns], factor[columns, columns], divisors[columns], patterns, sizes
            )
            work[:, columns] = pruned
            rest, line = work[:, columns.stop :], factor[columns, columns.stop :]
            if stats.fast:
                rest.addmm_(errors, line, alpha=-1)
            else:
                rest -= errors.contiguous() @ line
            if self.dead == "keep":  # after the walk: at zero these weights take part in nothing
                dead, before = stats.dead[columns], dense[:, columns]
                spared = dead & spare_dead(before, dead, patterns, sizes)
                kept[:, columns] = torch.where(dead, spared, kept[:, columns])
                work[:, columns] = torch.where(spared, before, pruned)
        return work, kept


def obs(inverse: Inverse | Factor) -> Tensor:
    """U_mm² (I,), the [H⁻¹]_mm of the columns from m on: w² over it is the rise of the squared error (eq. 4)."""
    return inverse.factor.diagonal() ** 2
