"""Sums of one pass over the tokens that the next weights follow from.

Shapes: L tokens, O outputs and I inputs of a matrix, D hidden size, F feed-forward size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.core.interfaces import Site
from harness.core.linalg import is_short_on_gpu
from harness.core.statistic import TOKENS_PER_PRODUCT, gram, together
from harness.methods.sparsellm.problem import Problem


class Sums:
    """Every residual times its inputs (O, I), the readers' one above the other, and what p showed."""

    def __init__(self, problem: Problem) -> None:
        statistic, part = problem.inner.statistic, problem.part
        parts = {"gram": gram} if statistic in (None, gram) else {"gram": gram, "inner": statistic}
        self._statistic = together(parts)
        down = problem.dense[part.down]
        self.stats = self._statistic.init(down.shape[1], down.device)
        outputs = [len(problem.dense[site]) for site in part.readers]
        self._readers = torch.zeros(sum(outputs), down.shape[0], dtype=torch.float32, device=down.device)
        self._down = torch.zeros(down.shape, dtype=torch.float32, device=down.device)
        self.cross: dict[Site, Tensor] = dict(zip(part.readers, self._readers.split(outputs), strict=True))
        self.cross[part.down] = self._down
        self._scale = 2 / len(problem.x)  # the unit of `gram`

    def add(self, site: Site, residual: Tensor, inputs: Tensor) -> None:
        """One window's residual (L, O) and inputs (L, I) of a matrix."""
        self.cross[site].addmm_(residual.T, inputs.float(), alpha=self._scale)

    def add_many(self, residuals: Tensor, x: Tensor, left: Tensor, p: Tensor, length: int) -> None:
        """Several windows of so many tokens: the readers' residuals and inputs, those of `down`, whose inputs are p."""
        for sums, residual, inputs in ((self._readers, residuals, x), (self._down, left, p)):
            sums.add_(_products(residual, inputs.to(residual.dtype), length), alpha=self._scale)
        self.stats = self._statistic.see(self.stats, p.unflatten(0, (-1, length)), exact=False)

    def see(self, p: Tensor) -> None:
        """One window of p (L, F), the inputs of `down`."""
        self.stats = self._statistic.see(self.stats, p[None], exact=False)


def _products(residual: Tensor, inputs: Tensor, length: int) -> Tensor:
    """r xᵀ (O, I) in float32, summed over no more tokens at once than tensor cores add up well."""
    windows = len(residual) // length
    most = max(1, TOKENS_PER_PRODUCT // length)
    some = next(count for count in range(min(most, windows), 0, -1) if windows % count == 0)
    left, right = (one.unflatten(0, (windows // some, -1)) for one in (residual, inputs))
    if is_short_on_gpu(residual):
        return torch.bmm(left.mT, right, out_dtype=torch.float32).sum(dim=0)
    return torch.bmm(left.float().mT, right.float()).sum(dim=0)
