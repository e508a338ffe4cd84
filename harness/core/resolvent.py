"""(G + ρ I)⁻¹ of one matrix for many ρ, as splitting methods with a penalty that moves ask for it.

Shapes: I inputs.
"""

from __future__ import annotations

import math
from functools import cached_property
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from harness.core.linalg import inverse_of_lower, square_of_lower
from harness.core.products import Multiplier

Way = Literal["spectrum", "spectrum32", "factor", "factor64", "nodes"]
"""How an inverse comes about: from eigenvalues in float64 or float32, which are found once; from a factor of its own in
float32 or float64; or from powers of those at two ρ, see `Resolvent`."""
STEP, POWERS = 4.0, 3
"""The ratio of neighbouring nodes, and how many powers of the inverse at each there are."""


class Resolvent:
    """ρ ↦ (G + ρ I)⁻¹ (I, I) in float32, for a positive semidefinite G (I, I) in float32.

    Eigenvalues are worth their price where the matrix is small; at 11008 inputs a GPU takes seconds for them, and the
    time of some thirty factors. `nodes` factorises at powers of `STEP` only: with R(ρ) = ρ (G + ρ I)⁻¹, of norm one at
    most, it takes R(ρ) for Σ wⱼₚ R(ρⱼ)ᵖ over the two nodes around ρ and p = 1 … `POWERS`, a product each.
    The weights are least squares for all eigenvalues λ ≥ 0; each comes out right to 8·10⁻⁵ of itself in exact
    arithmetic. Powers are products of halves, so R is right to some 10⁻⁴ of its norm and no small eigenvalue of it is:
    it is for right sides that have the size of ρ (`scaled.Departure`).
    """

    def __init__(self, matrix: Tensor, way: Way) -> None:
        self.matrix, self.way = matrix, way
        self._at: dict[float, Tensor] = {}

    def __call__(self, rho: float) -> Tensor:
        if self.way in ("spectrum", "spectrum32"):
            values, vectors = self._spectrum
            half = vectors * (values + rho).rsqrt()
            return half @ half.T
        if self.way == "nodes":
            return self._between(rho, torch.float32).div_(rho)
        return self.alone(rho)

    def halves(self, rho: float) -> Tensor:
        """R(ρ) = ρ (G + ρ I)⁻¹ (I, I) in half precision."""
        return self._between(rho, torch.float16) if self.way == "nodes" else self(rho).mul_(rho).half()

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

    def _between(self, rho: float, dtype: torch.dtype) -> Tensor:
        """R(ρ) of the powers at the nodes around ρ."""
        first = math.floor(math.log(rho, STEP))
        nodes = [STEP**first, STEP ** (first + 1)]
        low, high = map(self._powers, nodes)
        weights = _weights(rho, nodes)
        if low.is_cuda:
            from harness.core.solver_gpu import blend  # Triton comes with torch's CUDA builds only

            return blend(low, high, weights, dtype)
        total = torch.zeros_like(self.matrix)
        for term, weight in zip((*low, *high), weights, strict=True):
            total.add_(term, alpha=weight)
        return total.to(dtype)

    def _powers(self, node: float) -> Tensor:
        """R, R², … (POWERS, I, I) at a node, in half precision."""
        if node not in self._at:
            first = self.alone(node).mul_(node)
            powers = torch.empty(POWERS, *first.shape, dtype=torch.float16, device=first.device)
            powers[0] = first
            times = Multiplier.of_halves(powers[0], torch.ones((), device=first.device))
            for before, power in pairwise(powers):
                power.copy_(times.of_rows(before))
            self._at[node] = powers
        return self._at[node]


def _weights(rho: float, nodes: list[float]) -> list[float]:
    """w, node by node and power by power, with Σ wⱼₚ Rⱼᵖ as near to R(ρ) as it gets on average over log λ."""
    values = rho * torch.logspace(-4, 6, 400, dtype=torch.float64)
    terms = [(node / (values + node)) ** power for node in nodes for power in range(1, POWERS + 1)]
    columns = torch.stack([term * (values + rho) / rho for term in terms], dim=1)
    wanted = torch.ones(len(values), 1, dtype=torch.float64)
    return torch.linalg.lstsq(columns, wanted, driver="gelsd").solution[:, 0].tolist()
