"""ADMM with a mask that grows over its first steps.

Shapes: O outputs, I inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from harness.catalogue import component
from harness.core.costs import Cost, Work, observing, solver_inputs
from harness.core.geometry import Geometry
from harness.core.interfaces import Pruned
from harness.core.pattern import NofM, Pattern, Unstructured, keep
from harness.core.refit import refittable
from harness.core.scaled import Scaled, Solves, solver_bytes, solving
from harness.core.statistic import Gram, gram
from harness.runtime.errors import UserError

RHO = 1.0
EXACT = 3
"""Products with G: the target, and the errors of two results."""


@component("method", "admm")
@dataclass(frozen=True)
@refittable
class ADMM:
    """Boža 2024 (arXiv 2401.02938): an alternating direction method on the error of outputs, its mask gradual.

    Until step `gradual` the mask is chosen anew by |B + V/ρ| over the whole matrix, with the sparsity
    s − s (1 − t/`gradual`)³ at step t; then it stays. For N:M the N largest of every M are never removed, and the
    others go by the same schedule. `variant=released` is the authors' code (fmfi-compbio/admm-pruning, 8039208), whose
    whole-matrix branch computes that schedule and takes the full sparsity at every step. ⌊n·s⌋ of n weights go. Unlike
    theirs, a result that is no better than the mask of |W n| alone gives way to that.
    """

    variant: Literal["default", "released"] = "default"
    """`released`: what the authors' code does where it differs."""
    ridge: float = 0.1
    """The term added to the diagonal of the Gram matrix of inputs with norm 1."""
    iterations: int = 20
    """Steps of the alternating direction method."""
    gradual: int = 15
    """Steps until the mask stays."""

    statistic = gram

    def __post_init__(self) -> None:
        if self.ridge <= 0 or not 0 < self.gradual <= self.iterations:
            raise UserError("method.ridge has to be above 0, method.gradual from 1 to method.iterations.")

    def cost(self, geometry: Geometry, work: Work) -> Cost:
        """One inverse stays beside the Gram matrices."""
        lasting = solver_bytes(*solver_inputs(geometry), 1, fast=work.fast)
        stats = observing(self.statistic, geometry, work, lasting)
        solves = Solves(steps=self.iterations, exact=EXACT, penalties=1)
        return replace(stats, column_walks=0) + solving(geometry, work, solves)

    @torch.no_grad()
    def prune(self, weight: Tensor, stats: Gram, pattern: Pattern) -> Pruned:
        if pattern.sparsity == 0:
            return Pruned(weight.clone(), torch.ones_like(weight, dtype=torch.bool))
        problem = Scaled.once(stats, self.ridge, "scale first")
        inverse = stats.once((ADMM, self.ridge), lambda: problem.inverse(RHO, alone=True))
        dense = problem.into(weight)
        split = problem.splitting(dense, torch.ones_like(weight, dtype=torch.bool), dual=RHO)
        for step in range(1, self.iterations + 1):
            if step <= self.gradual:
                split.kept = self._kept(split.free.abs(), pattern, step)
            split.step(inverse, RHO)
        first = keep(dense.abs(), pattern, "matrix")
        x, kept = problem.no_worse(split.target, (split.free * split.kept, split.kept), (dense * first, first))
        return Pruned(problem.back(x, weight), kept)

    def _kept(self, score: Tensor, pattern: Pattern, step: int) -> Tensor:
        """Mask (O, I) of a step, by the scores."""
        left = 1 - step / self.gradual
        now = Unstructured(pattern.sparsity * (1 - left**3))
        if left == 0 or (self.variant == "released" and not isinstance(pattern, NofM)):
            return keep(score, pattern, "matrix")
        if isinstance(pattern, NofM):
            score = score.masked_fill(keep(score, pattern), torch.inf)
        return keep(score, now, "matrix", "loose")
