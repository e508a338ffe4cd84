"""The default variant: exact updates, one pass over the tokens an epoch.

The passes are here as `numerics=exact`, float32 and a CPU have them; `chunks.py` has those of the fast mode.

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
from harness.core.statistic import Gram
from harness.methods.sparsellm.chunks import Chunks
from harness.methods.sparsellm.problem import Problem, Trace, Weights, squared_sum
from harness.methods.sparsellm.sums import Sums
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
    tokens, trace = Chunks(problem) if problem.gram.fast else _Tokens(problem), Trace()
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
            soon = _without_waiting(problem, weights, sums, damping) if problem.gram.fast else None
            pruned = soon or _refit_and_prune(problem, weights, sums, damping, trace)
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


def _without_waiting(problem: Problem, weights: Weights, sums: Sums, damping: float) -> dict[Site, Pruned] | None:
    """Weights fitted by factors that nobody has looked at yet, and pruned together where they read the same inputs.

    Returns:
        None if that was not sound: a matrix could not be factorised at this damping.
    """
    part, seen = problem.part, sums.stats["gram"]
    seen.prepare(damping)  # beside what the readers need
    pruned: dict[Site, Pruned] = {}
    sound: list[Tensor] = []
    groups = ((part.readers, problem.gram, problem.stats), ((part.down,), seen, sums.stats.get("inner", seen)))
    for sites, matrix, stats in groups:
        factor = matrix.unchecked_factor(damping)
        fitted = [_refit_by(factor.factor, matrix, weights[site], sums.cross[site]) for site in sites]
        pruned |= problem.prune_together(sites, fitted, stats)
        sound += [factor.ok, *(ok for site in sites if (ok := pruned[site].ok) is not None)]
    if not bool(torch.stack(sound).all()):
        return None
    return {site: result._replace(ok=None) for site, result in pruned.items()}


def _refit_by(factor: Tensor, matrix: Gram, weight: Tensor, cross: Tensor) -> Tensor:
    """`refit` by U with Uᵀ U = (G + λ I)⁻¹, which is multiplied out where there are more outputs than inputs."""
    if len(weight) <= weight.shape[1]:
        return torch.addmm(weight.float(), cross @ factor.T, factor)
    return torch.addmm(weight.float(), cross, matrix.once(("inverse", id(factor)), lambda: factor.T @ factor))


def _refit_and_prune(
    problem: Problem, weights: Weights, sums: Sums, damping: float, trace: Trace
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

    def sweep(self, weights: Weights, trace: Trace, *, last: bool) -> Sums | None:
        """One pass over the tokens: the loss of these weights and, unless it is the last, p, z and s anew."""
        problem, sums = self.problem, None if last else Sums(self.problem)
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
