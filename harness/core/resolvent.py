"""(G + ρ I)⁻¹ of one matrix for many ρ, as splitting methods with a penalty that moves ask for it.

Shapes: I inputs.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from harness.core.linalg import inverse_of_lower, square_of_lower

Way = Literal["spectrum", "spectrum32", "factor", "factor64", "nodes"]
"""How an inverse comes about: from eigenvalues in float64 or float32, which are found once; from a factor of its own in
float32 or float64; or from those at a few ρ, see `Resolvent`."""
STEP, NODES = 2.0, 6
"""The ratio of neighbouring nodes, and how many of them stand for one ρ."""


class Resolvent:
    """ρ ↦ (G + ρ I)⁻¹ (I, I) in float32, for a positive semidefinite G (I, I) in float32.

    Eigenvalues are worth their price where the matrix is small; at 11008 inputs a GPU takes seconds for them, and the
    time of some thirty factors. `nodes` factorises at powers of `STEP` only and takes (λ + ρ)⁻¹ for Σ wⱼ (λ + ρⱼ)⁻¹
    over the `NODES` nearest, with the weights of the least largest relative error, about, for any λ ≥ 0: 3·10⁻⁴.
    """

    def __init__(self, matrix: Tensor, way: Way) -> None:
        self.matrix, self.way = matrix, way
        self._at: dict[int, Tensor] = {}

    def __call__(self, rho: float) -> Tensor:
        if self.way in ("spectrum", "spectrum32"):
            values, vectors = self._spectrum
            half = vectors * (values + rho).rsqrt()
            return half @ half.T
        if self.way == "nodes":
            return self._between(rho)
        return self.alone(rho)

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (I,), rounding below zero taken back, and eigenvectors (I, I)."""
        matrix = self.matrix.double() if self.way == "spectrum" else self.matrix
        values, vectors = torch.linalg.eigh(matrix)
        return values.clamp_min(0).float(), vectors.float()

    def alone(self, rho: float) -> Tensor:
        """The same from a factor of its own: the cheapest where one ρ is all."""
        shifted = self.matrix.double() if self.way == "factor64" else self.matrix.clone()
        shifted.diagonal().add_(rho)
        lower, _ = torch.linalg.cholesky_ex(shifted)  # G + ρ I is positive definite: nothing to look at
        return square_of_lower(inverse_of_lower(lower)).float()

    def _between(self, rho: float) -> Tensor:
        first = math.floor(math.log(rho, STEP)) - (NODES // 2 - 1)
        powers = range(first, first + NODES)
        weights = _weights(rho, [STEP**power for power in powers])
        for power in powers:
            if power not in self._at:
                self._at[power] = self.alone(STEP**power)
        total = weights[0] * self._at[powers[0]]
        for power, weight in zip(powers[1:], weights[1:], strict=True):
            total.add_(self._at[power], alpha=weight)
        return total


def _weights(rho: float, nodes: list[float]) -> list[float]:
    """w with (λ + ρ) Σ wⱼ / (λ + ρⱼ) as near to 1 as it gets on average over the logarithm of λ."""
    values = rho * torch.logspace(-4, 6, 400, dtype=torch.float64)
    columns = (values[:, None] + rho) / (values[:, None] + torch.tensor(nodes, dtype=torch.float64))
    return torch.linalg.lstsq(columns, torch.ones(len(values), 1, dtype=torch.float64)).solution[:, 0].tolist()
