"""SparseGPT: optimal brain surgeon, a column at a time.

Shapes: O outputs, I inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.catalogue import component
from harness.core.errors import UserError
from harness.core.interfaces import Pruned
from harness.core.linalg import inverse_factor
from harness.core.pattern import NofM, Pattern, Unstructured, keep
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
        if pattern.sparsity == 0:
            return Pruned(weight.clone(), torch.ones_like(weight, dtype=torch.bool))
        work = weight.float()  # (O, I); becomes the pruned weight from left to right
        hessian = seen.matrix
        dead = hessian.diagonal() == 0
        work = work.masked_fill(dead, 0)
        factor, used = inverse_factor(hessian + torch.diag(dead.float()), self.damping)
        kept = torch.empty_like(work, dtype=torch.bool)
        for start in range(0, work.shape[1], self.blocksize):
            columns = slice(start, start + self.blocksize)
            pruned, errors, kept[:, columns] = _prune_columns(work[:, columns], factor[columns, columns], pattern)
            work[:, columns] = pruned
            work[:, columns.stop :] -= errors.contiguous() @ factor[columns, columns.stop :]
        note = "" if used == self.damping else f"damping {used:g}"
        return Pruned(work.to(weight.dtype), kept, note)


def _prune_columns(block: Tensor, factor: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor, Tensor]:
    """One column block (O, B) with its part U (B, B) of the inverse factor → pruned block, scaled errors, kept.

    The columns are kept as rows (B, O) while we walk over them, so that each step touches contiguous memory.
    """
    rest = block.T.contiguous()  # (B, O)
    diagonal = factor.diagonal().clone()
    score = block**2 / diagonal**2  # the rise of the squared error when the weight goes (eq. 4)
    kept = keep(score, pattern, "matrix", quota="threshold") if isinstance(pattern, Unstructured) else None
    kept = torch.empty_like(rest, dtype=torch.bool) if kept is None else kept.T.contiguous()
    errors = torch.empty_like(rest)
    for i in range(rest.shape[0]):
        if isinstance(pattern, NofM) and i % pattern.of == 0:
            group = slice(i, i + pattern.of)
            kept[group] = keep(rest[group].T ** 2 / diagonal[group] ** 2, pattern).T
        errors[i] = torch.where(kept[i], 0, rest[i]) / diagonal[i]
        rest[i + 1 :] -= torch.outer(factor[i, i + 1 :], errors[i])
    return (rest * kept).T, errors.T, kept.T
