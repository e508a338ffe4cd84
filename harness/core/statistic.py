"""What calibration remembers of a linear's inputs: pairs of pure functions over windows.

Shapes: L tokens of one window, I inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness.core.linalg import Inverse, damped_inverse, is_short_on_gpu

Seen = Any
"""What a statistic has accumulated; only the method that asked for it knows its form."""


class Statistic(NamedTuple):
    """`init(I, device)` has seen nothing; `update(state, inputs (L, I))` adds one window and may reuse the state.

    `merge(states)` is the state that has seen what these have, on the device of the first, in their order: what several
    devices saw of their shares of the windows. It may reuse the first; without it one device sees all windows.
    """

    init: Callable[[int, torch.device], Seen]
    update: Callable[[Seen, Tensor], Seen]
    merge: Callable[[Sequence[Seen]], Seen] | None = None


class Norms(NamedTuple):
    """The mean over windows of Σ x² (I,), and the number of windows."""

    mean: Tensor
    windows: int


@dataclass(frozen=True, eq=False)
class Gram:
    """Twice the mean over windows of Σ x xᵀ (I, I), and the number of windows."""

    matrix: Tensor
    windows: int
    _inverses: dict[float, Inverse] = field(default_factory=dict, repr=False)

    @property
    def dead(self) -> Tensor:
        """True (I,) for inputs that were never anything but zero."""
        return self.matrix.diagonal() == 0

    def damped_inverse(self, damping: float) -> Inverse:
        """(G + λI)⁻¹ with its factor, see `linalg.damped_inverse`; made once for all linears with this input.

        Dead inputs count as one, as in SparseGPT's released code.
        """
        if damping not in self._inverses:
            self._inverses[damping] = damped_inverse(self.matrix + torch.diag(self.dead.float()), damping)
        return self._inverses[damping]


def _no_norms(width: int, device: torch.device) -> Norms:
    return Norms(torch.zeros(width, device=device), 0)


def _add_norms(state: Norms, inputs: Tensor) -> Norms:
    """The running mean of Wanda's released code, operation by operation: near ties are decided by its rounding."""
    windows = state.windows + 1
    mean = state.mean * (state.windows / windows)
    return Norms(mean + torch.norm(inputs.float().T, p=2, dim=1) ** 2 / windows, windows)


def _merge_norms(states: Sequence[Norms]) -> Norms:
    windows = sum(state.windows for state in states)
    return Norms(_mean([state.mean for state in states], [state.windows for state in states]), windows)


def _mean(means: Sequence[Tensor], windows: Sequence[int]) -> Tensor:
    """The mean over all windows of means over some of them, in the memory of the first."""
    total = max(1, sum(windows))
    mean = means[0].mul_(windows[0] / total)
    for other, count in zip(means[1:], windows[1:], strict=True):
        mean.add_(other.to(mean.device), alpha=count / total)
    return mean


def _no_gram(width: int, device: torch.device) -> Gram:
    return Gram(torch.zeros(width, width, device=device), 0)


def _add_gram(state: Gram, inputs: Tensor) -> Gram:
    """The running mean of SparseGPT's released code, operation by operation: its rounding is part of its masks."""
    windows = state.windows + 1
    matrix = state.matrix.mul_(state.windows / windows)
    if is_short_on_gpu(inputs):
        return Gram(matrix.add_(torch.mm(inputs.T, inputs, out_dtype=torch.float32), alpha=2 / windows), windows)
    scaled = math.sqrt(2 / windows) * inputs.float().T
    return Gram(matrix.add_(scaled @ scaled.T), windows)


def _merge_grams(states: Sequence[Gram]) -> Gram:
    windows = sum(state.windows for state in states)
    return Gram(_mean([state.matrix for state in states], [state.windows for state in states]), windows)


def together(parts: Mapping[str, Statistic]) -> Statistic:
    """Several statistics of the same inputs as one, whose state holds theirs by name."""

    def init(width: int, device: torch.device) -> Seen:
        return {name: part.init(width, device) for name, part in parts.items()}

    def update(state: Seen, inputs: Tensor) -> Seen:
        return {name: part.update(state[name], inputs) for name, part in parts.items()}

    def merge(states: Sequence[Seen]) -> Seen:
        return {name: part.merge([state[name] for state in states]) for name, part in parts.items() if part.merge}

    return Statistic(init, update, merge if all(part.merge for part in parts.values()) else None)


norms = Statistic(_no_norms, _add_norms, _merge_norms)
"""The mean squared norm of each input."""

gram = Statistic(_no_gram, _add_gram, _merge_grams)
"""Twice the mean Gram matrix: the Hessian of the squared output error, up to the number of outputs."""
