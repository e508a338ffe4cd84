"""Products with one matrix, many times: its parts for a GPU's tensor cores are made once.

Shapes: R rows, I inputs.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Rounding = Literal["float32", "split", "half"]
"""How factors are rounded: not at all; to a half-precision number and half of what it lacks (22 bits); to half."""


class Multiplier:
    """X ↦ X M for a matrix M (I, I): sums in float32, factors as `rounding` says.

    `split` takes X M for X₁ M₁ + X₂ M₁ + X₁ M₂, of which M₂ and X₂ are what rounding to half precision left, in one
    product of three times the length; what it leaves out is 2⁻²² of the product, about what float32 rounds. Rows of X
    and the whole of M are scaled so that no part leaves the range of half precision.
    """

    def __init__(self, matrix: Tensor, rounding: Rounding = "float32") -> None:
        self.rounding = rounding
        if rounding == "float32":
            self._parts = matrix
            return
        self._scale = matrix.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
        high, low = _halves(matrix / self._scale)
        self._parts = high if rounding == "half" else torch.cat([high, high, low])

    def __call__(self, x: Tensor) -> Tensor:
        """X M (R, I) in float32 for X (R, I) in float32."""
        if self.rounding == "float32":
            return x @ self._parts
        scale = x.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        high, low = _halves(x / scale)
        parts = high if self.rounding == "half" else torch.cat([high, low, high], dim=1)
        return _product(parts, self._parts).mul_(scale).mul_(self._scale)


def _halves(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix of at most 1 as the sum of two in half precision."""
    high = matrix.half()
    return high, (matrix - high).half()


def _product(left: Tensor, right: Tensor) -> Tensor:
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()
