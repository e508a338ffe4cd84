"""The authors' code as it is (BaiTheBest/SparseLLM, commit 27fe26a), to be compared with; not recommended for use.

What is particular to it, and kept: W ← z X⁺ without regard to the dense weights (the `down` matrix of an ungated part
takes ten gradient steps instead); s takes two gradient steps of 0.01; the Hessian of `up` and `gate` is damped in
place, so damping adds up over epochs; gated parts of blocks 1, 30 and 31 stop after one epoch whatever the model;
nothing looks at the loss. Its casts to half precision are casts to the model's dtype here. Pseudo-inverses and the
inverse in the update of p go through Gram matrices in float64 instead of an SVD and a wide inverse in float32, and p is
rounded once, not at each step: in float32 that is all the difference. Shapes: L tokens of one window, D hidden size,
F feed-forward size, O outputs, I inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from harness.core.interfaces import FeedForward, Pruned, Site
from harness.core.statistic import Gram, gram
from harness.methods.sparsegpt import SparseGPT
from harness.methods.sparsellm.problem import Problem, Trace, Weights
from harness.methods.sparsellm.updates import relu_z, value_and_slope
from harness.runtime.errors import UserError
from harness.runtime.memory import OffloadableTensors

SHORT_BLOCKS = (1, 30, 31)
GRADIENT_STEPS = {"down": (10, 0.01), "s": (2, 0.01)}
"""Number and length of the steps of plain gradient descent."""


def released_epochs(epochs: int, part: FeedForward, index: int) -> int:
    """The epochs that the block with this index gets."""
    return 1 if part.gated and index in SHORT_BLOCKS else epochs


def replay(problem: Problem, first: Mapping[Site, Pruned], epochs: int) -> tuple[dict[Site, Pruned], Trace]:
    """The epochs after the first → the part pruned, and how it went.

    Raises:
        UserError: the variables are not finite any more, as its divergence can end.
    """
    try:
        return _replay(problem, first, epochs)
    except torch.linalg.LinAlgError as error:
        raise UserError(f"method.variant=released diverged at {problem.part.down}: {error}.") from error


def _replay(problem: Problem, first: Mapping[Site, Pruned], epochs: int) -> tuple[dict[Site, Pruned], Trace]:
    part, pruned = problem.part, dict(first)
    tokens = _Tokens(problem)
    inner, matrix = problem.inner, problem.gram
    assert isinstance(inner, SparseGPT)  # the component has seen to it
    trace = Trace([tokens.loss({site: result.weight for site, result in pruned.items()})])
    for _ in range(1, epochs):
        weights = {site: result.weight for site, result in pruned.items()}
        tokens.move(weights)
        fitted, stats = tokens.fit(weights)
        matrix = _damped_again(matrix, inner.damping)
        for site in part.sites:
            pruned[site] = problem.prune(site, fitted[site], stats if site == part.down else matrix)
        trace.add([tokens.loss({site: result.weight for site, result in pruned.items()})])
    return pruned, trace


def _damped_again(matrix: Gram, damping: float) -> Gram:
    """The Hessian as the last use of it left it: dead inputs at one, and the damping still on the diagonal."""
    left = matrix.matrix + torch.diag(matrix.dead.float())
    left.diagonal().add_(damping * left.diagonal().mean())
    return Gram(left, matrix.windows)


class _Tokens:
    """The auxiliary variables of every window in the model's dtype, which start as the dense ones."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        device = problem.x.device
        self.y, self.z, self.s, self.p = (OffloadableTensors(device) for _ in range(4))
        for x in problem.x:
            up, gate = problem.before_activation(x, problem.dense)
            self.z.append(up.to(x.dtype))
            self.p.append(problem.hidden(up, gate).to(x.dtype))
            self.y.append(problem.target(self.p[len(self.p) - 1]))
            if gate is not None:
                self.s.append(gate.to(x.dtype))
        self._unread = _unread(problem.x)

    def loss(self, weights: Weights) -> float:
        """The mean squared error of the part's outputs."""
        problem, down = self.problem, weights[self.problem.part.down].float()
        total = torch.zeros((), dtype=torch.float64, device=down.device)
        for x, y in zip(problem.x, self.y, strict=True):
            total += problem.squared_error(*problem.before_activation(x, weights), y.float(), down)
        return float(total) / self.y.elements

    def move(self, weights: Weights) -> None:
        """p, z and s of every window in turn."""
        problem = self.problem
        alpha, beta, gamma = problem.penalties
        inverse = _inverse_activation(weights[problem.part.down], beta, gamma)
        for index, x in enumerate(problem.x):
            up, gate = problem.before_activation(x, weights)
            up, z, y = up.to(x.dtype), self.z[index], self.y[index]
            s = None if gate is None else self.s[index]
            p = (beta * (y @ weights[problem.part.down]) + gamma * problem.hidden(z, s)) @ inverse
            self.p[index] = p
            if s is None or gate is None:
                self.z[index] = relu_z(up, p, alpha, gamma)
                continue
            opened = problem.part.activation(s)
            self.z[index] = (up + opened * p) / (opened**2 + 1)  # the minimiser for alpha = gamma
            self.s[index] = self._descend(s, gate, p, self.z[index])

    def _descend(self, s: Tensor, t: Tensor, p: Tensor, z: Tensor) -> Tensor:
        """Gradient steps on α (s − t)² + γ (p − φ(s) z)², counted in float32 and kept in the dtype of s (L, F)."""
        alpha, gamma = self.problem.penalties.alpha, self.problem.penalties.gamma
        steps, length = GRADIENT_STEPS["s"]
        for _ in range(steps):
            at = s.float()
            value, slope = value_and_slope(self.problem.part.activation, at)
            gradient = 2 * alpha * (at - t) - 2 * gamma * (p.float() - value * z.float()) * slope * z.float()
            s = (at - length * gradient).to(s.dtype)
        return s

    def fit(self, weights: Weights) -> tuple[dict[Site, Tensor], Gram]:
        """New weights before they are pruned, and the Hessian of `down` from p."""
        problem, part = self.problem, self.problem.part
        state = gram.init(weights[part.down].shape[1], self.p.device)
        for p in self.p:
            state = gram.update(state, p)
        fitted = {site: torch.zeros_like(weights[site], dtype=torch.float32) for site in part.readers}
        for index, x in enumerate(problem.x):
            inverse = (x.double() @ self._unread).to(x.dtype).float()
            s = self.s[index] if part.gated else None
            for site, target in problem.by_reader(self.z[index], s).items():
                fitted[site] += (target - part.biases[site] if site in part.biases else target).float().T @ inverse
        if part.gated:
            unread = _unread(self.p)
            fitted[part.down] = torch.zeros_like(weights[part.down], dtype=torch.float32)
            for y, p in zip(self.y, self.p, strict=True):
                fitted[part.down] += y.float().T @ (p.double() @ unread).to(p.dtype).float()
        else:
            fitted[part.down] = self._descend_down(weights[part.down].float(), state)
        return {site: weight.to(problem.dense[site].dtype).float() for site, weight in fitted.items()}, state

    def _descend_down(self, weight: Tensor, state: Gram) -> Tensor:
        """Gradient steps on the mean of (W p − y)², through the Gram matrix of p that is there already."""
        steps, length = GRADIENT_STEPS["down"]
        cross = torch.zeros_like(weight)
        for p, y in zip(self.p, self.y, strict=True):
            cross += y.float().T @ p.float()
        total = state.matrix * (len(self.p) / 2)
        for _ in range(steps):
            weight = weight - length * 2 / self.y.elements * (weight @ total - cross)
        return weight


def _inverse_activation(down: Tensor, beta: float, gamma: float) -> Tensor:
    """(β WᵀW + γ I)⁻¹ (F, F) in the dtype of W (D, F), through the smaller system (Woodbury) in float64."""
    wide = down.double()
    small = wide @ wide.T
    small.diagonal().add_(gamma / beta)
    reduced = wide.T @ torch.cholesky_solve(wide, torch.linalg.cholesky(small))
    reduced.neg_().diagonal().add_(1)
    return (reduced / gamma).to(down.dtype)


def _unread(tokens: OffloadableTensors) -> Tensor:
    """(Σ x xᵀ)⁻¹ (I, I) in float64, the pseudo-inverse where some inputs depend on others."""
    width = tokens[0].shape[1]
    total = torch.zeros(width, width, dtype=torch.float64, device=tokens.device)
    for x in tokens:
        total.addmm_(x.double().T, x.double())
    factor, info = torch.linalg.cholesky_ex(total)
    if info.item() == 0:
        return torch.cholesky_inverse(factor)
    return torch.linalg.pinv(total, hermitian=True, rtol=1e-14)
