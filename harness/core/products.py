"""Products with one matrix, many times: its parts for a GPU's tensor cores are made once.

Shapes: R rows, I inputs.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Rounding = Literal["float32", "split", "half"]
"""How factors are rounded: not at all; to a half-precision number and half of what it lacks (22 bits); to half."""
WIDEST = 32768
"""The longest row that one program of a GPU holds in registers."""


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
        self.scale = matrix.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
        high, low = _halves(matrix / self.scale)
        self._parts = high if rounding == "half" else torch.cat([high, high, low])

    @classmethod
    def of_halves(cls, parts: Tensor, scale: Tensor) -> Multiplier:
        """X ↦ X times the `parts` (I, I), in half precision, times the `scale` ()."""
        made = cls.__new__(cls)
        made.rounding, made._parts, made.scale = "half", parts, scale
        return made

    @property
    def rough(self) -> Multiplier:
        """The same with factors of half precision, where these are rounded at all; no memory of its own."""
        if self.rounding == "float32":
            return self
        return Multiplier.of_halves(self._parts[: self._parts.shape[1]], self.scale)

    def __call__(self, x: Tensor) -> Tensor:
        """X M (R, I) in float32 for X (R, I) in float32."""
        if self.rounding == "float32":
            return x @ self._parts
        parts, scale = _rows(x, split=self.rounding == "split")
        return self.of_rows(parts).mul_(scale.mul_(self.scale))

    def of_rows(self, parts: Tensor) -> Tensor:
        """Rows (R, I, or three times I), in half precision, times the parts of M: the product over the scale."""
        if parts.is_cuda:
            return torch.mm(parts, self._parts, out_dtype=torch.float32)
        return parts.float() @ self._parts.float()


def _rows(x: Tensor, *, split: bool) -> tuple[Tensor, Tensor]:
    """Rows over the largest of each, in the parts that a product takes, and what they were divided by (R, 1)."""
    if x.is_cuda and x.shape[1] <= WIDEST:
        from harness.core.solver_gpu import halves  # Triton comes with torch's CUDA builds only

        return halves(x, 3 if split else 1)
    scale = x.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    high, low = _halves(x / scale)
    return torch.cat([high, low, high], dim=1) if split else high, scale


def _halves(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix of at most 1 as the sum of two in half precision."""
    high = matrix.half()
    return high, (matrix - high).half()
