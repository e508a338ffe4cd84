"""The default variant: exact updates, one pass over the tokens an epoch.

Between epochs only x, y, z (and s) stay, window by window; p and every other intermediate live for one window, and what
the next weights need of them is summed on the way. Shapes: L tokens of one window, O outputs, I inputs of a linear.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from harness.core.interfaces import Pruned, Site
from harness.core.linalg import products_like
from harness.core.statistic import Gram, gram, together
from harness.methods.sparsellm.problem import Problem, Trace, Weights, squared_sum
from harness.methods.sparsellm.updates import Coupling, gated_z, inside, relu_z
from harness.runtime.errors import UserError
from harness.runtime.memory import OffloadableTensors


def alternate(
    problem: Problem, first: Mapping[Site, Pruned], epochs: int, damping: float
) -> tuple[dict[Site, Pruned], Trace]:
    """The epochs after the first, which is the inner method's.

    Returns:
        The part pruned, and how it went. It ends early, with the last weights of finite error, where an update fails.
    """
    tokens, trace = _Tokens(problem), Trace()
    before = pruned = dict(first)
    while True:
        weights = {site: result.weight for site, result in pruned.items()}
        sums = tokens.sweep(weights, trace, last=len(trace.loss) + 1 == epochs)
        if not math.isfinite(trace.loss[-1]):
            trace.ended = f"the error after epoch {len(trace.loss)} is not finite"
            return before, trace
        if sums is None:
            return pruned, trace
        before = pruned
        try:
            pruned = _refit_and_prune(problem, weights, sums, damping, trace)
        except UserError as error:  # the Gram matrix of p cannot be factorised at any damping
            trace.ended = str(error)
            return pruned, trace
        del sums  # matrices of the width of p, which the next pass makes anew


def refit(weight: Tensor, cross: Tensor, matrix: Gram, damping: float) -> Tensor:
    """argmin over W (O, I) of ‖t − W x‖² + λ ‖W − W¹‖², λ = `damping` times the mean diagonal of G = x xᵀ.

    Args:
        weight: W¹, the weights as they are, which stay where the inputs say nothing.
        cross: the residual t − W¹ x times the inputs, r xᵀ (O, I), in the unit of `matrix`.

    Returns:
        W¹ + r xᵀ (G + λ I)⁻¹ in float32.
    """
    return torch.addmm(weight.float(), cross, matrix.damped_inverse(damping).matrix)


def _refit_and_prune(
    problem: Problem, weights: Weights, sums: _Sums, damping: float, trace: Trace
) -> dict[Site, Pruned]:
    pruned = {}
    for site in problem.part.sites:
        down = site == problem.part.down
        matrix = sums.stats["gram"] if down else problem.gram
        stats = sums.stats.get("inner", matrix) if down else problem.stats
        fitted = refit(weights[site], sums.cross[site], matrix, damping)
        pruned[site] = problem.prune(site, fitted, stats)
        if (used := matrix.damped_inverse(damping).damping) != damping:
            trace.raised.append(f"epoch {len(trace.loss) + 1}, {site}: {used:g}")
    return pruned


class _Sums:
    """Sums of one pass for the next weights: every residual times its inputs (O, I), and what p showed."""

    def __init__(self, problem: Problem) -> None:
        statistic = problem.inner.statistic
        parts = {"gram": gram} if statistic in (None, gram) else {"gram": gram, "inner": statistic}
        self._statistic = together(parts)
        down = problem.dense[problem.part.down]
        self.stats = self._statistic.init(down.shape[1], down.device)
        self.cross = {
            site: torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
            for site, weight in problem.dense.items()
        }
        self._scale = 2 / len(problem.x)  # the unit of `gram`

    def add(self, site: Site, residual: Tensor, inputs: Tensor) -> None:
        """One window's residual (L, O) and inputs (L, I) of a matrix."""
        self.cross[site].addmm_(residual.T, inputs.float(), alpha=self._scale)

    def see(self, p: Tensor) -> None:
        """One window of p (L, F), the inputs of `down`."""
        self.stats = self._statistic.see(self.stats, p[None], exact=False)


class _Tokens:
    """The variables that stay between epochs: y, z and s of every window, which start as the dense ones."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        device = problem.x.device
        self.y, self.z, self.s = OffloadableTensors(device), OffloadableTensors(device), OffloadableTensors(device)
        with products_like(problem.dense[problem.part.down]):
            for x in problem.x:
                up, gate = problem.before_activation(x, problem.dense)
                self.y.append(problem.target(problem.hidden(up, gate)))
                self.z.append(up)
                if gate is not None:
                    self.s.append(gate)

    def sweep(self, weights: Weights, trace: Trace, *, last: bool) -> _Sums | None:
        """One pass over the tokens: the loss of these weights and, unless it is the last, p, z and s anew."""
        problem, sums = self.problem, None if last else _Sums(self.problem)
        part = problem.part
        down = weights[part.down].float()
        coupling = None if last else Coupling(down, problem.penalties.beta, problem.penalties.gamma)
        error = torch.zeros(2, dtype=torch.float64, device=down.device)
        with products_like(weights[part.down]):
            for index, x in enumerate(problem.x):
                y = self.y[index].float()
                up, gate = problem.before_activation(x, weights)
                error[0] += problem.squared_error(up, gate, y, down)
                if coupling is None or sums is None:
                    continue
                p, left, z, s = self._move(index, coupling, up, gate, y)
                error[1] += squared_sum(left)
                sums.see(p)
                sums.add(part.down, left, p)
                residuals = problem.by_reader(z - up, None if s is None or gate is None else s - gate)
                for site, residual in residuals.items():
                    sums.add(site, residual, x)
        trace.add((error / problem.x.elements).tolist()[: 1 if last else 2])
        return sums

    def _move(
        self, index: int, coupling: Coupling, up: Tensor, gate: Tensor | None, y: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """p, z and s of one window in turn → p (L, F), y − W_down p (L, D), z and s."""
        alpha, gamma = self.problem.penalties.alpha, self.problem.penalties.gamma
        z, phi = self.z[index], self.problem.part.activation
        if gate is None:
            p, left = coupling(phi(z), y)
            relu = isinstance(phi, nn.ReLU)
            self.z[index] = z = relu_z(up, p, alpha, gamma) if relu else inside(z, up, p, None, phi, alpha, gamma)
            return p, left, z, None
        s = self.s[index]
        opened = phi(s)
        p, left = coupling(opened * z, y)
        z = gated_z(up, opened, p, alpha, gamma)
        s = inside(s, gate, p, z, phi, alpha, gamma)
        self.z[index], self.s[index] = z, s
        return p, left, z, s
