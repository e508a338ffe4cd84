"""A refit of the weights that a mask keeps, and the option `refit=true` for any method.

Shapes: O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import field
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from harness.core.costs import Cost, Work, observing
from harness.core.geometry import Geometry
from harness.core.interfaces import Pruned
from harness.core.pattern import Pattern
from harness.core.products import WIDEST, Multiplier
from harness.core.scaled import Scaled, Solves, solving
from harness.core.statistic import ActivationStats, Gram, Statistic, gram, together

STEPS, RIDGE = 10, 0.01
"""Steps of conjugate gradients and ridge, as ALPS has them."""
M = TypeVar("M", bound=type)


def conjugate_gradients(times: Multiplier, target: Tensor, start: Tensor, kept: Tensor, steps: int = STEPS) -> Tensor:
    """Lower ½ tr(X G Xᵀ) − tr(C Xᵀ) over X that are zero outside `kept`, a system an output (ALPS, algorithm 2).

    Args:
        times: X ↦ X G, G (I, I) positive definite; its `rough` is enough for directions, whose length is found out.
        target: C (O, I).
        start: X (O, I) as it begins, zero outside `kept`.

    Returns:
        X (O, I); a row that rounding made no better is as it began.
    """
    x, kept = start.clone(memory_format=torch.contiguous_format), kept.contiguous()
    residual = (target - times(x)) * kept
    before = _objective(x, target, residual)
    by_kernel = x.is_cuda and times.rounding != "float32" and x.shape[1] <= WIDEST
    (_halves_descent if by_kernel else _descent)(times.rough, x, residual, kept, steps)
    return torch.where(_objective(x, target, residual) < before, x, start)


def _descent(times: Multiplier, x: Tensor, residual: Tensor, kept: Tensor, steps: int) -> None:
    """Move X and its residual, in place."""
    direction = residual.clone()
    length = residual.square().sum(dim=1, keepdim=True)
    for _ in range(steps):
        image = times(direction)
        step = _ratio(length, (direction * image).sum(dim=1, keepdim=True))
        x.addcmul_(direction, step)
        residual.addcmul_(image.mul_(kept), step, value=-1)
        previous, length = length, residual.square().sum(dim=1, keepdim=True)
        direction.mul_(_ratio(length, previous)).add_(residual)


def _halves_descent(times: Multiplier, x: Tensor, residual: Tensor, kept: Tensor, steps: int) -> None:
    """The same on a GPU, a kernel between products in half precision."""
    from harness.core.solver_gpu import descend, halves  # Triton comes with torch's CUDA builds only

    direction = residual.clone()
    length = residual.square().sum(dim=1, keepdim=True)
    parts, scales = halves(direction, 1)
    for _ in range(steps):
        product = times.of_rows(parts)
        descend(product, times.scale, scales, direction, residual, x, kept, length, parts)


def _objective(x: Tensor, target: Tensor, residual: Tensor) -> Tensor:
    """tr(X G Xᵀ) − 2 tr(C Xᵀ) by rows (O, 1): where X is not zero, X G is C less the residual."""
    return -(x * (target + residual)).sum(dim=1, keepdim=True, dtype=torch.float64)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """A step, none where nothing is left to divide by."""
    return torch.where(below > 0, above / below, 0)


def refitted(pruned: Pruned, weight: Tensor, stats: Gram) -> Pruned:
    """The same mask with its weights (O, I) nearer to those of the least error of outputs beside the dense `weight`."""
    if bool(pruned.kept.all()):
        return pruned
    problem = Scaled.once(stats, RIDGE, "ridge first")
    target = problem.times(problem.into(weight))
    start = problem.into(pruned.weight) * pruned.kept
    x = conjugate_gradients(problem.times, target, start, pruned.kept)
    return pruned._replace(weight=problem.back(x, weight))


def refittable(method: M) -> M:
    """Give a method the setting `refit`: ten steps of conjugate gradients on its mask, from its own weights.

    The one line a method needs for it stands between `@dataclass` and the class:

        @component("method", "wanda")
        @dataclass(frozen=True)
        @refittable
        class Wanda:

    The method itself does not change, nor does its identity while `refit` is off. With it the method's statistic comes
    with the Gram matrix of the same inputs (once, where it is the Gram matrix), and whatever `prune` and
    `prune_together` give is refitted. It is for a `LinearMethod` that defines these itself, as a function or property.
    """
    own = dict(method.__dict__)
    statistic, prune = own["statistic"], own["prune"]

    def own_statistic(self: Any) -> Statistic | None:
        return statistic.__get__(self, type(self)) if isinstance(statistic, property) else statistic

    def asked(self: Any) -> Statistic | None:
        return _with_gram(own_statistic(self)) if self.refit else own_statistic(self)

    def parts(self: Any, stats: ActivationStats) -> tuple[ActivationStats, Gram]:
        mine = own_statistic(self)
        return (None, stats) if mine is None else (stats, stats) if mine is gram else (stats["own"], stats["gram"])

    def cost(self: Any, geometry: Geometry, work: Work) -> Cost:
        mine = own["cost"](self, geometry, work) if "cost" in own else observing(self.statistic, geometry, work)
        return mine + solving(geometry, work, Solves(exact=2, rough=STEPS)) if self.refit else mine

    def prune_and_refit(self: Any, weight: Tensor, stats: ActivationStats, pattern: Pattern) -> Pruned:
        if not self.refit:
            return prune(self, weight, stats, pattern)
        mine, matrix = parts(self, stats)
        with torch.no_grad():
            return refitted(prune(self, weight, mine, pattern), weight, matrix)

    def together_and_refit(
        self: Any, weights: Sequence[Tensor], stats: ActivationStats, patterns: Sequence[Pattern]
    ) -> list[Pruned]:
        if not self.refit:
            return own["prune_together"](self, weights, stats, patterns)
        mine, matrix = parts(self, stats)
        results = own["prune_together"](self, weights, mine, patterns)
        with torch.no_grad():
            return [refitted(pruned, weight, matrix) for pruned, weight in zip(results, weights, strict=True)]

    def prepare(self: Any, stats: ActivationStats) -> None:
        own["prepare"](self, parts(self, stats)[0] if self.refit else stats)

    changed: dict[str, Callable[..., Any]] = {"prune": prune_and_refit}
    if "prune_together" in own:
        changed |= {"prune_together": together_and_refit, "prepare": prepare}
    for name, function in changed.items():
        function.__doc__ = own[name].__doc__
        setattr(method, name, function)
    method.statistic = property(asked)  # type: ignore[attr-defined]
    method.cost = cost  # type: ignore[attr-defined]
    method.__annotations__["refit"] = "bool"
    method.refit = field(default=False, metadata={"identity": "unless default"})  # type: ignore[attr-defined]
    return method


@lru_cache(maxsize=32)
def _with_gram(statistic: Statistic | None) -> Statistic:
    return gram if statistic in (None, gram) else together({"own": statistic, "gram": gram})
