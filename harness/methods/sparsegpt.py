"""SparseGPT: optimal brain surgeon, a column at a time.

Shapes: O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.catalogue import component
from harness.core.columns import prune_columns
from harness.core.errors import UserError
from harness.core.interfaces import Pruned
from harness.core.linalg import Inverse
from harness.core.pattern import NofM, Pattern
from harness.core.statistic import Seen, gram


@component("method", "sparsegpt")
@dataclass(frozen=True)
class SparseGPT:
    """Frantar and Alistarh 2023 (arXiv 2301.00774), algorithm 1.

    A column block is one comparison group; inside it, removed weights are compensated by the columns to their right.
    As in the authors' code: inputs never seen lose their weights, and a block's threshold itself is removed. Rounding
    decides masks where the Gram matrix is ill-conditioned, so every product here is rounded as theirs is.
    """

    damping: float = 0.01
    blocksize: int = 128

    statistic = gram

    def __post_init__(self) -> None:
        if self.damping <= 0 or self.blocksize < 1:
            raise UserError("method.damping has to be above 0 and method.blocksize at least 1.")

    def refuses(self, pattern: Pattern, shape: tuple[int, int]) -> str | None:
        if isinstance(pattern, NofM) and self.blocksize % pattern.of and self.blocksize < shape[1]:
            return f"method.blocksize={self.blocksize} is not divisible by {pattern.of}, as the pattern {pattern} needs"
        return None

    @torch.no_grad()
    def prune(self, weight: Tensor, seen: Seen, pattern: Pattern) -> Pruned:
        return self.prune_by(obs, weight, seen, pattern)

    def prune_by(self, divisor: Callable[[Inverse], Tensor], weight: Tensor, seen: Seen, pattern: Pattern) -> Pruned:
        """The same walk for any score of the form w² over a `divisor` (I,) that follows from the damped inverse."""
        if pattern.sparsity == 0:
            return Pruned(weight.clone(), torch.ones_like(weight, dtype=torch.bool))
        work = weight.float()  # (O, I); becomes the pruned weight from left to right
        work = work.masked_fill(seen.dead, 0)
        inverse = seen.damped_inverse(self.damping)
        factor, divisors = inverse.factor, divisor(inverse)
        kept = torch.empty_like(work, dtype=torch.bool)
        for start in range(0, work.shape[1], self.blocksize):
            columns = slice(start, start + self.blocksize)
            pruned, errors, kept[:, columns] = prune_columns(
                work[:, columns], factor[columns, columns], divisors[columns], pattern
            )
            work[:, columns] = pruned
            work[:, columns.stop :] -= errors.contiguous() @ factor[columns, columns.stop :]
        note = "" if inverse.damping == self.damping else f"damping {inverse.damping:g}"
        return Pruned(work.to(weight.dtype), kept, note)


def obs(inverse: Inverse) -> Tensor:
    """U_mm² (I,), the [H⁻¹]_mm of the columns from m on: w² over it is the rise of the squared error (eq. 4)."""
    return inverse.factor.diagonal() ** 2
