"""The closed forms behind SparseLLM: each lowers its share of the objective, token by token.

The feed-forward part of a block is one problem over its calibration tokens (arXiv 2402.17946, section 4),

    α ‖z − W_up x‖² + α ‖s − W_gate x‖² + γ ‖p − φ(s) ⊙ z‖² + β ‖y − W_down p‖²      (gated)
    α ‖z − W_up x‖²                     + γ ‖p − φ(z)‖²     + β ‖y − W_down p‖²      (not gated)

with x and y what the dense part reads and gives, biases left out. Shapes: T tokens, D hidden size, F feed-forward size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Activation = Callable[[Tensor], Tensor]
STEPS = 2
"""Gauss-Newton steps of a variable inside an activation, each epoch anew."""
SHORTER = 0.25
"""The factor of a step that did not lower the cost."""


class Penalties(NamedTuple):
    """The weights of the three constraints: of the pre-activations, of the output, of the activation."""

    alpha: float
    beta: float
    gamma: float


class Coupling:
    """The update of p (T, F) for one W_down (D, F): the exact minimiser of γ ‖p − a‖² + β ‖y − W p‖².

    p = a + Wᵀ (W Wᵀ + (γ/β) I)⁻¹ (y − W a), so the system solved is of the smaller size D (Woodbury), in float64.
    """

    def __init__(self, down: Tensor, beta: float, gamma: float) -> None:
        self.down = down.float()
        self.ratio = gamma / beta
        small = down.double() @ down.double().T
        small.diagonal().add_(self.ratio)
        factor, _ = torch.linalg.cholesky_ex(small)  # fails for weights that are not finite only: the loss shows it
        self._inverse = torch.cholesky_inverse(factor).float()

    def __call__(self, a: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """p (T, F) and what is left of the target, y − W p (T, D), which needs no product of its own."""
        q = (y - a @ self.down.T) @ self._inverse
        return torch.addmm(a, q, self.down), self.ratio * q

    def left(self, without: Tensor) -> Tensor:
        """y − W p (T, D) from y − W a (T, D)."""
        return (without @ self._inverse).mul_(self.ratio)


def gated_z(m: Tensor, gate: Tensor, p: Tensor, alpha: float, gamma: float) -> Tensor:
    """argmin over z of α (z − m)² + γ (p − g z)², g = φ(s); all (T, F)."""
    ratio = gamma / alpha
    return torch.addcmul(m, gate, p, value=ratio).div_(gate.square().mul_(ratio).add_(1))


def relu_z(m: Tensor, p: Tensor, alpha: float, gamma: float) -> Tensor:
    """argmin over z of α (z − m)² + γ (p − max(z, 0))²: the better of the best positive and the best negative z."""
    positive = ((alpha * m + gamma * p) / (alpha + gamma)).clamp(min=0)
    negative = m.clamp(max=0)
    cost_of_positive = gamma * (p - positive) ** 2 + alpha * (positive - m) ** 2
    cost_of_negative = gamma * p**2 + alpha * (negative - m) ** 2
    return torch.where(cost_of_positive <= cost_of_negative, positive, negative)


def value_and_slope(phi: Activation, at: Tensor) -> tuple[Tensor, Tensor]:
    """φ and φ′ of every element."""
    value, slope = torch.func.jvp(phi, (at,), (torch.ones_like(at),))[:2]
    return value, slope


def inside(
    s: Tensor, t: Tensor, p: Tensor, scale: Tensor | None, phi: Activation, alpha: float, gamma: float
) -> Tensor:
    """Lower α (s − t)² + γ (p − c φ(s))² over s (T, F), c = `scale`, by Gauss-Newton steps of every element.

    The problem is not convex: a step that does not lower an element's cost is not taken, and the next one is shorter.
    """
    ratio = alpha / gamma

    def left(value: Tensor) -> Tensor:
        return p - value if scale is None else torch.addcmul(p, scale, value, value=-1)

    def cost(at: Tensor, rest: Tensor) -> Tensor:
        away = t - at
        return torch.addcmul(rest * rest, away, away, value=ratio)

    best = trial = s
    lowest, step = torch.full_like(s, torch.inf), torch.zeros_like(s)
    for _ in range(STEPS):
        value, slope = value_and_slope(phi, trial)
        rest = left(value)
        pull = slope if scale is None else scale * slope
        newton = (pull * rest).add_(t - trial, alpha=ratio).div_(pull.square().add_(ratio))
        at_trial = cost(trial, rest)
        better = at_trial < lowest
        best, lowest = torch.where(better, trial, best), torch.where(better, at_trial, lowest)
        step = torch.where(better, newton, SHORTER * step)
        trial = best + step
    return torch.where(cost(trial, left(phi(trial))) < lowest, trial, best)
