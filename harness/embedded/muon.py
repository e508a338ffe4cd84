"""Muon: momentum whose update is made orthogonal, which learns from fewer tokens than AdamW does on a small machine.

Matrices of one shape are handled as one stack, since dozens of tiny products would cost more in calls than in sums.
"""

from __future__ import annotations

import torch

# Coefficients of the quintic iteration that brings singular values near one.
_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonal(stack: torch.Tensor, rounds: int = 5) -> torch.Tensor:
    """The nearest orthogonal matrix of each matrix in the stack, approximately."""
    tall = stack.shape[1] > stack.shape[2]
    x = stack.transpose(1, 2) if tall else stack
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(rounds):
        gram = x @ x.transpose(1, 2)
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x.transpose(1, 2) if tall else x


class Muon:
    """The optimizer, for matrices only."""

    def __init__(self, matrices: list[torch.nn.Parameter], momentum: float = 0.95) -> None:
        shapes: dict[torch.Size, list[torch.nn.Parameter]] = {}
        for matrix in matrices:
            shapes.setdefault(matrix.shape, []).append(matrix)
        self.groups = list(shapes.values())
        self.momentum = momentum
        self.moments = [torch.zeros(len(g), *g[0].shape, device=g[0].device) for g in self.groups]

    @torch.no_grad()
    def step(self, rate: float, decay: float) -> None:
        """One update; the scale keeps the size of the change alike for wide and tall matrices."""
        for group, moment in zip(self.groups, self.moments, strict=True):
            gradient = torch.stack([p.grad for p in group if p.grad is not None])
            moment.lerp_(gradient, 1 - self.momentum)
            update = orthogonal(gradient.lerp(moment, self.momentum))
            scale = max(1.0, update.shape[1] / update.shape[2]) ** 0.5
            for matrix, change in zip(group, update, strict=True):
                matrix.mul_(1 - rate * decay).add_(change, alpha=-rate * scale)
