"""ALPS: a splitting with a penalty that rises until the mask settles, then a refit on the mask.

Shapes: O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.catalogue import component
from harness.core.costs import Cost, Work, observing, solver_inputs
from harness.core.geometry import Geometry
from harness.core.interfaces import Pruned
from harness.core.pattern import Pattern, keep
from harness.core.products import Multiplier
from harness.core.refit import conjugate_gradients
from harness.core.resolvent import POWERS
from harness.core.scaled import Scaled, Solves, solver_bytes, solving
from harness.core.statistic import Gram, gram
from harness.runtime.errors import UserError

LOOK, LEAST, SETTLED = 3, 30, 3e-4
"""The mask is looked at every so many iterations; from `LEAST` on a smaller share of changes than this ends them."""
HIGHEST = 1e6
NODES = 4
"""At so many ρ there are factors on a GPU: it rises to some sixteen times what it was."""
STEPS, PENALTIES = 32, 11
"""Steps of a matrix and values of ρ at one input, measured on the proxies and the embedded models: they hardly vary."""
EXACT = 4
"""Products with G: the target, the begin of the refit, and the errors of two results."""


@component("method", "alps")
@dataclass(frozen=True)
class ALPS:
    """Meng et al. 2024 (arXiv 2406.07831), as the authors' code has it (mazumder-lab/ALPS, 8af9e6b).

    ADMM on the error of outputs with exactly k weights of the matrix, or N of every M (`core/scaled.py`); ρ rises with
    what still changes in the mask, and the best k of the last iterate are refitted by `refit_steps` of conjugate
    gradients. The whole matrix is one comparison group. ⌊n·s⌋ of n weights go, where their code rounds; and a result
    that is no better than the mask it began with gives way to that, which theirs does not ask.
    """

    ridge: float = 0.01
    """The term added to the diagonal of the Gram matrix, in units of its mean."""
    rho: float = 0.1
    """The penalty ρ at the first step."""
    iterations: int = 300
    """Steps at most."""
    refit_steps: int = 10
    """Steps of conjugate gradients on the final mask."""

    statistic = gram

    def __post_init__(self) -> None:
        if self.ridge <= 0 or self.rho <= 0 or self.iterations < 1 or self.refit_steps < 0:
            raise UserError(
                "method.ridge and method.rho have to be above 0, method.iterations at least 1, method.refit_steps 0."
            )

    def cost(self, geometry: Geometry, work: Work) -> Cost:
        """Powers in half precision stay beside the Gram matrices, see `scaled.solver_bytes`."""
        lasting = solver_bytes(*solver_inputs(geometry), NODES * POWERS // 2 if work.fast else 1, fast=work.fast)
        stats = observing(self.statistic, geometry, work, lasting)
        solves = Solves(min(self.iterations, STEPS), EXACT, self.refit_steps, PENALTIES, NODES)
        return replace(stats, column_walks=0) + solving(geometry, work, solves)

    @torch.no_grad()
    def prune(self, weight: Tensor, stats: Gram, pattern: Pattern) -> Pruned:
        return self.prune_together([weight], stats, [pattern])[0]

    def prepare(self, stats: Gram) -> None:
        """Nothing has to begin early."""

    @torch.no_grad()
    def prune_together(self, weights: Sequence[Tensor], stats: Gram, patterns: Sequence[Pattern]) -> list[Pruned]:
        """Matrices that read the same inputs, in step: they share inverses, and a GPU is waited for once a look."""
        problem = Scaled.once(stats, self.ridge, "ridge first")
        runs = [_Run(problem, *item, self.rho) for item in zip(weights, patterns, strict=True)]
        going = [run for run in runs if 0 < run.pattern.sparsity < 1]
        inverses: dict[float, Multiplier] = {}
        for iteration in range(self.iterations):
            inverses = {rho: inverses.get(rho) or problem.inverse(rho) for rho in {run.rho for run in going}}
            for run in going:
                run.step(inverses[run.rho])
            if iteration % LOOK == LOOK - 1 and going:
                changes = torch.stack([run.changed() for run in going]).tolist()
                going = [run for run, changed in zip(going, changes, strict=True) if not run.ends(changed, iteration)]
            if not going:
                break
        return [run.result(weight, self.refit_steps) for run, weight in zip(runs, weights, strict=True)]


class _Run:
    """One matrix on its way."""

    def __init__(self, problem: Scaled, weight: Tensor, pattern: Pattern, rho: float) -> None:
        self.problem, self.pattern, self.rho, self.raised = problem, pattern, rho, False
        self.dense = problem.into(weight)
        self.first = keep(self.dense.abs(), pattern, "matrix", "loose")
        self.stay = weight.numel() - int(weight.numel() * pattern.sparsity)
        self.looked_at = self.first
        self.split = problem.splitting(self.dense, self.first, dual=0.0)

    def step(self, inverse: Multiplier) -> None:
        """One iteration."""
        self.split.step(inverse, self.rho)
        self.split.kept = keep(self.split.free.abs(), self.pattern, "matrix", "loose")

    def changed(self) -> Tensor:
        """How many positions () are kept or not otherwise than at the last look."""
        changed = (self.split.kept ^ self.looked_at).sum()
        self.looked_at = self.split.kept
        return changed

    def ends(self, changed: int, iteration: int) -> bool:
        """Choose the next ρ, or begin again with a smaller one where the first was high enough to freeze the mask."""
        share = changed / self.stay
        if share > 0.005:
            self.rho, self.raised = self.rho * (1.3 if share > 0.1 else 1.2), True
        elif self.raised:
            if changed == 0:
                return True
            self.rho *= 1.1
        else:
            self.rho /= 5
            if changed:
                self.split.begin(self.first, dual=0.0)
        self.rho = min(self.rho, HIGHEST)
        return iteration >= LEAST and share < SETTLED

    def result(self, weight: Tensor, steps: int) -> Pruned:
        """The best of the last B, refitted."""
        if self.pattern.sparsity == 0:
            return Pruned(weight.clone(), self.first)
        kept = keep(self.split.solution.abs(), self.pattern, "matrix")
        target, first = self.split.target, keep(self.dense.abs(), self.pattern, "matrix")
        x = conjugate_gradients(self.problem.times, target, self.split.solution * kept, kept, steps)
        x, kept = self.problem.no_worse(target, (x, kept), (self.dense * first, first))
        return Pruned(self.problem.back(x, weight), kept)
