"""Thanos: optimal brain surgeon on all removed weights of a block of columns at once.

Shapes: O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from harness.catalogue import component
from harness.core.costs import Cost, Work, largest, observing
from harness.core.geometry import Geometry
from harness.core.interfaces import Pruned
from harness.core.joint import compensated, working_bytes
from harness.core.moments import last_norms
from harness.core.pattern import NofM, Pattern, keep, lowest
from harness.core.statistic import ActivationStats, Gram, Statistic, gram, squared_norms, together
from harness.runtime.errors import UserError


@component("method", "thanos")
@dataclass(frozen=True)
class Thanos:
    """Ilin and Richtárik 2025 (arXiv 2504.05346), algorithms 1 and 2: the mask is Wanda's, found anew for each block.

    From left to right, a block of columns loses those of the ⌊n·s⌋ − (zeros so far) weights of least |w| ‖x‖ among all
    that are left which lie in it (N:M: the least of each group), and each row is compensated for all of them at once,
    in every column from the block on. The matrix loses ⌊n·s⌋ weights exactly; inputs never seen go first.

    For N:M the share `outliers` of the outputs, those of largest ‖w ∘ ‖x‖‖, stays dense (α of the paper).
    `variant=released` is the authors' code (vectozavr/thanos, 1bc9aed): there one output more stays dense, so that even
    `outliers=0` leaves a row that has no N:M pattern, and outputs are ranked by the last calibration window alone.
    """

    damping: float = 0.01
    """The term added to the diagonal of the Gram matrix, in units of its mean."""
    blocksize: int = 512
    """Columns of a block."""
    outliers: float = 0.0
    """For N:M, the share of the outputs that stays dense."""
    variant: Literal["default", "released"] = "default"
    """`released`: what the authors' code does where it differs."""

    def __post_init__(self) -> None:
        if self.damping <= 0 or self.blocksize < 1:
            raise UserError("method.damping has to be above 0 and method.blocksize at least 1.")
        if not 0 <= self.outliers < 1:
            raise UserError(f"method.outliers={self.outliers} is a share of the outputs, at least 0 and below 1.")

    @property
    def statistic(self) -> Statistic:
        return _stats if self.variant == "default" else _stats_and_last

    def cost(self, geometry: Geometry, work: Work) -> Cost:
        """Beside one matrix: it twice in float32, its order, and the systems of rows at once with their factors."""

        def beside(outputs: int, inputs: int) -> float:
            return working_bytes(outputs, min(self.blocksize, inputs), cuda=work.cuda) + 16 * outputs * inputs

        return replace(observing(self.statistic, geometry, work), working_bytes=largest(geometry, beside))

    def refuses(self, pattern: Pattern, shape: tuple[int, int]) -> str | None:
        if isinstance(pattern, NofM) and self.blocksize % pattern.of and self.blocksize < shape[1]:
            return f"method.blocksize={self.blocksize} is not divisible by {pattern.of}, as the pattern {pattern} needs"
        return None

    @torch.no_grad()
    def prune(self, weight: Tensor, stats: Mapping[str, ActivationStats], pattern: Pattern) -> Pruned:
        if pattern.sparsity == 0:
            return Pruned(weight.clone(), torch.ones_like(weight, dtype=torch.bool))
        if pattern.sparsity == 1:
            return Pruned(torch.zeros_like(weight), torch.zeros_like(weight, dtype=torch.bool))
        matrix: Gram = stats["gram"]
        inverse, norm = matrix.damped_inverse(self.damping), stats["squared_norms"].mean_sq.sqrt()
        work, kept = weight.float().masked_fill(matrix.dead, 0), torch.ones_like(weight, dtype=torch.bool)
        inside = self._inside(work, stats["last"].sqrt() if "last" in stats else norm, pattern)
        work[inside], kept[inside] = self._walk(work[inside], norm, inverse.factor, pattern)
        note = "" if inverse.damping == self.damping else f"damping {inverse.damping:g}"
        return Pruned(work.to(weight.dtype), kept, note)

    def _inside(self, weight: Tensor, norm: Tensor, pattern: Pattern) -> Tensor:
        """The outputs (·,) that are pruned at all."""
        dense = 0
        if isinstance(pattern, NofM):
            dense = int(self.outliers * len(weight)) + (self.variant == "released")
        rising = (weight * norm).square().sum(dim=1).sort(stable=True).indices
        return rising[: len(weight) - dense].sort().values

    def _walk(self, work: Tensor, norm: Tensor, factor: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
        """The pruned weights and what was kept (O, I), from left to right.

        The factor U is upper triangular and Uᵀ U = H⁻¹, so that of the columns F from a block on has the inverse
        U_Fᵀ U_F, of which the block's own rows take no more than its own rows of U.
        """
        kept, left = torch.ones_like(work, dtype=torch.bool), int(pattern.sparsity * work.numel())
        for start in range(0, work.shape[1], self.blocksize):
            columns, behind = slice(start, start + self.blocksize), slice(start, None)
            scores = work[:, behind].abs() * norm[behind]
            if isinstance(pattern, NofM):
                going = ~keep(scores[:, : self.blocksize], pattern)
            else:
                going = lowest(scores, left)[:, : self.blocksize]
                left -= int(going.sum())
            rows = factor[columns, behind]
            work[:, behind] = compensated(work[:, behind], going, rows[:, : going.shape[1]].T @ rows)
            kept[:, columns] = ~going
        return work, kept


_stats = together({"gram": gram, "squared_norms": squared_norms})
_stats_and_last = together({"gram": gram, "squared_norms": squared_norms, "last": last_norms})
