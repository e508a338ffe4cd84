"""The least-squares problem of a linear in the scale of its inputs: what solvers with a penalty iterate on.

With n the root of the diagonal of G = x xᵀ, the error tr((W − B) G (W − B)ᵀ) is that of W n and B n with G / (n nᵀ),
whose diagonal is one: magnitudes there are Wanda's scores. Shapes: O outputs, I inputs.
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from harness.core.costs import Cost, Work, products
from harness.core.geometry import Geometry
from harness.core.products import Multiplier, Rounding
from harness.core.resolvent import POWERS, Resolvent, Way
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
    "fast": Arithmetic("split", "half", "nodes"),
}
"""By the device; `fast` on a GPU where the sums were taken in another order too (`Gram.fast`). An iteration forgives
what its inverses lack: masks differ as they do between two orders of sums, layer errors by a thousandth at most."""


class Solves(NamedTuple):
    """A solver's products with matrices (I, I), and their making, for the cost of its arithmetic.

    Attributes:
        steps: products of each matrix (O, I) with an inverse.
        exact, rough: those with G, and those with G as directions need it (`Multiplier.rough`).
        penalties: different ρ for each distinct input.
        nodes: those of them on a GPU at which there are factors and powers; 0 where every ρ has a factor of its own.
    """

    steps: float = 0
    exact: float = 0
    rough: float = 0
    penalties: float = 0
    nodes: float = 0


def solving(geometry: Geometry, work: Work, count: Solves) -> Cost:
    """The cost of these products for the blocks in scope, by the arithmetic that the run takes."""
    cubes = geometry.input_cubes * work.blocks
    if work.fast:  # three products of halves are one that is split
        powers = 2.0 * count.nodes * (POWERS - 1) * cubes
        halves = products(geometry, work, count.steps + 3 * count.exact + count.rough) + powers
        return Cost(halves=halves, factored=(count.nodes or count.penalties) * cubes)
    operations = products(geometry, work, count.steps + count.exact + count.rough)
    if work.cuda or not count.nodes:
        return Cost(operations=operations, factored=count.penalties * cubes)
    return Cost(operations=operations + 2.0 * count.penalties * cubes, spectral=cubes)


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
        """X ↦ X (G + ρ I)⁻¹; `alone` where no other ρ will be asked for. In half precision, R(ρ) is over 1 / ρ."""
        if self.arithmetic.steps != "half":
            return Multiplier(self.resolvent.alone(rho) if alone else self.resolvent(rho), self.arithmetic.steps)
        halves = self.resolvent.alone(rho).mul_(rho).half() if alone else self.resolvent.halves(rho)
        return Multiplier.of_halves(halves, torch.full((), 1 / rho, device=halves.device))

    def splitting(self, dense: Tensor, kept: Tensor, dual: float) -> Splitting | Departure:
        """The iterates of the method for W n (O, I), in the form that its arithmetic is enough for."""
        if self.arithmetic.steps == "half" or self.arithmetic.way == "nodes":
            return Departure(self.times, dense, kept, dual)
        return Splitting(self.times(dense), dense, kept, dual)

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

    def __init__(self, target: Tensor, dense: Tensor, kept: Tensor, dual: float) -> None:
        self.target, self.dense = target, dense
        self.begin(kept, dual)

    def begin(self, kept: Tensor, dual: float) -> None:
        """Be where the method begins, at W."""
        self.free, self.kept, self.dual = self.dense, kept, dual
        self.solution = self.dense

    def step(self, inverse: Multiplier, rho: float) -> None:
        """B anew, and B + V/ρ; what is kept of it is the caller's to say."""
        penalty = torch.where(self.kept, rho, -self.dual)
        self.solution = inverse(torch.addcmul(self.target, self.free, penalty))
        self.free = torch.addcmul(self.solution, self.free, torch.where(self.kept, 0.0, self.dual / rho))
        self.dual = rho


class Departure:
    """The iterates of `Splitting` by how far they are from the dense weights W.

    B − W = (ρ (D − W) − V) (G + ρ I)⁻¹ is the same B, since C = W G. What is multiplied here has the size of ρ W, where
    C − V + ρ D has that of W G: along the largest eigenvalues of G, thousands of times ρ, the latter is as large, and a
    rounding of it or an inverse that is right to a share of its norm would be an error of many times W. Here each is
    one of a like share of W. All (O, I).
    """

    def __init__(self, times: Multiplier, dense: Tensor, kept: Tensor, dual: float) -> None:
        self._times, self.dense = times, dense
        self.begin(kept, dual)

    def begin(self, kept: Tensor, dual: float) -> None:
        """Be where the method begins, at W."""
        self.free, self.kept, self.dual = self.dense, kept, dual
        self._change = torch.zeros((), device=self.dense.device)

    @cached_property
    def target(self) -> Tensor:
        """C = W G."""
        return self._times(self.dense)

    @property
    def solution(self) -> Tensor:
        """B."""
        return torch.addcmul(self.dense, self._change, self._scales)

    @cached_property
    def _scales(self) -> Tensor:
        """The largest weight (O, 1) of each row."""
        return self.dense.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)

    def step(self, inverse: Multiplier, rho: float) -> None:
        """B anew, and B + V/ρ; what is kept of it is the caller's to say."""
        ratio, self.dual = self.dual / rho, rho
        if self.dense.is_cuda and inverse.rounding == "half":
            self._on_gpu(inverse, ratio)
            return
        right = torch.where(self.kept, self.free, self.free * -ratio).sub_(self.dense)
        self._change = inverse(right.mul_(rho)).div_(self._scales)
        self.free = torch.addcmul(self.solution, self.free, torch.where(self.kept, 0.0, ratio))

    def _on_gpu(self, inverse: Multiplier, ratio: float) -> None:
        """The same in two kernels around the product with R(ρ), see `Scaled.inverse`."""
        from harness.core.solver_gpu import pull, push  # Triton comes with torch's CUDA builds only

        state = (self.free, self.kept.contiguous(), self.dense, self._scales)
        self._change = inverse.of_rows(push(*state, ratio))
        free = torch.empty_like(self.dense) if self.free is self.dense else self.free
        pull(*state, self._change, ratio, free)
        self.free = free


def solver_bytes(inputs: int, widest: int, weights: int, nodes: int, *, fast: bool) -> int:
    """Bytes for solving beside the sums, about: counted for the arithmetic of a GPU (`fast`) or of float32.

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
