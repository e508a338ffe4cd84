"""The least-squares problem of a linear in the scale of its inputs: what solvers with a penalty iterate on.

With n the root of the diagonal of G = x xᵀ, the error tr((W − B) G (W − B)ᵀ) is that of W n and B n with G / (n nᵀ),
whose diagonal is one: magnitudes there are Wanda's scores. Shapes: O outputs, I inputs.
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from harness.core.products import Multiplier, Rounding
from harness.core.resolvent import Resolvent, Way
from harness.core.statistic import Gram

NEVER_ZERO = 1e-8
"""Added to every n, as in the authors' codes: inputs never seen have this scale, so their weights go first."""


class Arithmetic(NamedTuple):
    """How products are rounded, those with G and those with inverses, and how inverses come about."""

    products: Rounding
    steps: Rounding
    way: Way


ARITHMETIC = {
    "cpu": Arithmetic("float32", "float32", "spectrum"),
    "cuda": Arithmetic("float32", "float32", "factor64"),
    "fast": Arithmetic("split", "split", "nodes"),
}
"""By the device; `fast` on a GPU where the sums were taken in another order too (`Gram.fast`). An iteration forgives
what its inverses lack: masks differ as they do between two orders of sums, layer errors by a thousandth at most."""


class Scaled:
    """G (I, I) with a unit diagonal and a ridge, the scale n (I,) of the inputs, and what is made of G for solvers.

    Args:
        ridge: times the mean of the diagonal is added to it, before the scaling or behind it.
    """

    def __init__(self, stats: Gram, ridge: float, order: Literal["ridge first", "scale first"]) -> None:
        matrix = stats.matrix.clone()
        if order == "ridge first":
            matrix.diagonal().add_(ridge * matrix.diagonal().mean())
        self.scale = matrix.diagonal().sqrt() + NEVER_ZERO
        matrix.div_(self.scale).div_(self.scale[:, None])
        if order == "scale first":
            matrix.diagonal().add_(ridge * matrix.diagonal().mean())
        else:
            matrix.diagonal().fill_(1)
        self.matrix = matrix
        place = "cpu" if not matrix.is_cuda else "fast" if stats.fast else "cuda"
        self.arithmetic = ARITHMETIC[place]

    @classmethod
    def once(cls, stats: Gram, ridge: float, order: Literal["ridge first", "scale first"]) -> Scaled:
        """The same for all linears with this input."""
        return stats.once((cls, ridge, order), lambda: cls(stats, ridge, order))

    @cached_property
    def times(self) -> Multiplier:
        """X ↦ X G."""
        return Multiplier(self.matrix, self.arithmetic.products)

    @cached_property
    def resolvent(self) -> Resolvent:
        """ρ ↦ (G + ρ I)⁻¹."""
        return Resolvent(self.matrix, self.arithmetic.way)

    def inverse(self, rho: float, *, alone: bool = False) -> Multiplier:
        """X ↦ X (G + ρ I)⁻¹; `alone` where no other ρ will be asked for."""
        matrix = self.resolvent.alone(rho) if alone else self.resolvent(rho)
        return Multiplier(matrix, self.arithmetic.steps)

    def into(self, weight: Tensor) -> Tensor:
        """W n (O, I) in float32."""
        return weight.float().contiguous() * self.scale

    def no_worse(
        self, target: Tensor, found: tuple[Tensor, Tensor], first: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Of two (X, mask), all (O, I), the `found` one if its error is the smaller, decided where they are.

        A splitting is no descent: it exchanges near ties. With the first mask as the least it can give, it is exact
        where G is diagonal: Wanda's, compared over the matrix.
        """
        errors = [(x * (self.times(x) - 2 * target)).sum(dtype=torch.float64) for x in (found[0], first[0])]
        better = errors[0] < errors[1]
        return torch.where(better, found[0], first[0]), torch.where(better, found[1], first[1])

    def back(self, work: Tensor, like: Tensor) -> Tensor:
        """The weight (O, I) behind W n, in the dtype of `like`."""
        return (work / self.scale).to(like.dtype)


class Splitting:
    """The iterates of min ½ tr((W − B) G (W − B)ᵀ) with B = D, D sparse, by the alternating direction method (ADMM).

    With V the dual variable, B ← (C − V + ρ D) (G + ρ I)⁻¹ for C = W G, D ← what `kept` keeps of B + V/ρ, and
    V ← V + ρ (B − D), so that D and V share one matrix, `free` = B + V/ρ: D is free where it is kept, V is ρ free
    elsewhere, with the ρ of its time, `dual`. All (O, I).
    """

    def __init__(self, target: Tensor, free: Tensor, kept: Tensor, dual: float) -> None:
        self.target, self.free, self.kept, self.dual = target, free, kept, dual
        self.solution = free

    def step(self, inverse: Multiplier, rho: float) -> None:
        """B anew, and B + V/ρ; what is kept of it is the caller's to say."""
        penalty = torch.where(self.kept, rho, -self.dual)
        self.solution = inverse(torch.addcmul(self.target, self.free, penalty))
        self.free = torch.addcmul(self.solution, self.free, torch.where(self.kept, 0.0, self.dual / rho))
        self.dual = rho


def solver_bytes(inputs: int, widest: int, weights: int, nodes: int, *, fast: bool) -> int:
    """What solving takes beside the sums, about: counted for the arithmetic of a GPU (`fast`) or of float32.

    Args:
        inputs: elements of the matrices (I, I) of all distinct inputs of a block.
        widest: elements of the largest.
        weights: weights of the matrices that are solved together.
        nodes: matrices (I, I) that stay for each input, as inverses or eigenvectors.
    """
    split = 6 if fast else 0  # three halves for a number
    lasting = inputs * (4 + split + 4 * nodes)
    passing = widest * (4 + split + (8 if fast else 24))  # the inverse of now; beside it, float64 where it is one's way
    return lasting + passing + weights * (6 * 4 + split)
