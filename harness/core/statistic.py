"""Statistics of a linear's inputs in calibration: pure functions over windows.

Shapes: W windows of L tokens each, I inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from harness.core.linalg import Factor, Inverse, beside, damped_inverse, is_short_on_gpu, mirrored, unchecked_factor

T = TypeVar("T")
ActivationStats = Any
"""State of a statistic; only the method that asked for it knows its form."""


class Statistic(NamedTuple):
    """`init(I, device)` has seen nothing; `update(state, inputs (L, I))` adds one window and may reuse the state.

    `update` rounds as the released codes do; `add(state, inputs (W, L, I))`, where there is one, adds several windows
    at once, sooner and in another order. `merge(states)` is the state that has seen what these have, on the device of
    the first, in their order: what several devices saw of their shares of the windows. It may reuse the first; without
    it one device sees all windows.
    """

    init: Callable[[int, torch.device], ActivationStats]
    update: Callable[[ActivationStats, Tensor], ActivationStats]
    add: Callable[[ActivationStats, Tensor], ActivationStats] | None = None
    merge: Callable[[Sequence[ActivationStats]], ActivationStats] | None = None

    def see(self, state: ActivationStats, inputs: Tensor, *, exact: bool) -> ActivationStats:
        """Add windows (W, L, I): one after the other where that is asked for or the only way.

        In float32 and on a CPU the released order is kept in both modes: there it costs next to nothing.
        """
        if self.add is not None and not exact and is_short_on_gpu(inputs):
            return self.add(state, inputs)
        for window in inputs:
            state = self.update(state, window)
        return state


class SquaredNorms(NamedTuple):
    """The mean over windows of Σ x² (I,), and the number of windows."""

    mean_sq: Tensor
    windows: int


@dataclass(frozen=True, eq=False)
class Gram:
    """Twice the mean over windows of Σ x xᵀ (I, I), and the number of windows.

    `fast` says that the sums were taken in another order than the released code's; nothing is lost then by a shorter
    way to the inverse. `lower` says that the lower triangle of the sums alone is known.
    """

    sums: Tensor
    windows: int
    fast: bool = False
    lower: bool = False
    _inverses: dict[float, Inverse] = field(default_factory=dict, repr=False)
    _unchecked: dict[float, Factor] = field(default_factory=dict, repr=False)
    _made: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def matrix(self) -> Tensor:
        """The whole symmetric matrix."""
        return mirrored(self.sums) if self.lower else self.sums

    @property
    def dead(self) -> Tensor:
        """True (I,) for inputs that were never anything but zero."""
        return self.sums.diagonal() == 0

    def damped_inverse(self, damping: float) -> Inverse:
        """(G + λI)⁻¹ with its factor, see `linalg.damped_inverse`; made once for all linears with this input.

        Dead inputs count as one, as in SparseGPT's released code.
        """
        if damping not in self._inverses:
            self._inverses[damping] = damped_inverse(self._alive, damping)
        return self._inverses[damping]

    def unchecked_factor(self, damping: float) -> Factor:
        """The factor alone, by a shorter way and without waiting for the GPU; its `ok` tells later if it is one."""
        if damping not in self._unchecked:
            self.prepare(damping)
        return self._unchecked[damping].here()

    def prepare(self, damping: float) -> None:
        """Start making the factor while the GPU goes on with other things."""
        self._unchecked[damping] = beside(lambda: unchecked_factor(self._alive, damping), self.sums)

    def once(self, what: Hashable, make: Callable[[], T]) -> T:
        """A value made of this matrix once for all linears with this input, at whatever sparsity: `make()` by name."""
        if what not in self._made:
            self._made[what] = make()
        return self._made[what]

    @property
    def _alive(self) -> Tensor:
        return self.matrix + torch.diag(self.dead.float())


def _no_norms(width: int, device: torch.device) -> SquaredNorms:
    return SquaredNorms(torch.zeros(width, device=device), 0)


def _add_norms(state: SquaredNorms, inputs: Tensor) -> SquaredNorms:
    """The running mean of Wanda's released code, operation by operation: near ties are decided by its rounding."""
    windows = state.windows + 1
    mean = state.mean_sq * (state.windows / windows)
    return SquaredNorms(mean + torch.norm(inputs.float().T, p=2, dim=1) ** 2 / windows, windows)


def _merge_norms(states: Sequence[SquaredNorms]) -> SquaredNorms:
    windows = sum(state.windows for state in states)
    return SquaredNorms(_mean([state.mean_sq for state in states], [state.windows for state in states]), windows)


def _mean(means: Sequence[Tensor], windows: Sequence[int]) -> Tensor:
    """The mean over all windows of means over some of them, in the memory of the first."""
    total = max(1, sum(windows))
    mean = means[0].mul_(windows[0] / total)
    for other, count in zip(means[1:], windows[1:], strict=True):
        mean.add_(other.to(mean.device), alpha=count / total)
    return mean


STRIP, FULL = 128, 64
"""Columns of a Gram matrix that a CPU adds to at a time (two thirds of the whole product at 704 inputs), and what its
width has to be a multiple of."""


def _no_gram(width: int, device: torch.device) -> Gram:
    return Gram(torch.zeros(width, width, device=device), 0)


def _add_gram(state: Gram, inputs: Tensor) -> Gram:
    """The running mean of SparseGPT's released code, operation by operation: its rounding is part of its masks.

    On a CPU in strips on and below the diagonal, where these round as the whole product does: at widths that fill the
    library's kernels. A GPU's libraries go by shape.
    """
    windows = state.windows + 1
    matrix = state.sums.mul_(state.windows / windows)
    scaled = math.sqrt(2 / windows) * inputs.float().T
    if matrix.is_cuda or len(scaled) % FULL:
        return Gram(matrix.add_(scaled @ scaled.T), windows)
    for start in range(0, len(scaled), STRIP):
        strip = slice(start, start + STRIP)
        matrix[start:, strip].add_(scaled[start:] @ scaled[strip].T)
    return Gram(matrix, windows, lower=True)


def _add_norms_at_once(state: SquaredNorms, inputs: Tensor) -> SquaredNorms:
    windows = state.windows + len(inputs)
    squares = torch.linalg.vector_norm(inputs.flatten(0, 1), dim=0, dtype=torch.float32).square()
    return SquaredNorms(state.mean_sq * (state.windows / windows) + squares / windows, windows)


TOKENS_PER_PRODUCT = 4096
"""Tensor cores cut off while they add up: over more tokens than this, masks begin to differ."""


def _add_gram_at_once(state: Gram, inputs: Tensor) -> Gram:
    """Products of 16-bit numbers are exact in float32, so only the sum is rounded."""
    from harness.core.gram_gpu import add_lower  # Triton comes with torch's CUDA builds only

    windows = state.windows
    for some in inputs.split(max(1, TOKENS_PER_PRODUCT // inputs.shape[1])):
        seen, windows = windows, windows + len(some)
        add_lower(state.sums, some.flatten(0, 1), before=seen / windows, weight=2 / windows)
    return Gram(state.sums, windows, fast=True, lower=True)


def _merge_grams(states: Sequence[Gram]) -> Gram:
    counts = [state.windows for state in states]
    fast, lower = any(state.fast for state in states), any(state.lower for state in states)
    return Gram(_mean([state.sums for state in states], counts), sum(counts), fast, lower)


def never_seen(state: ActivationStats) -> Tensor | None:
    """True (I,) for inputs that were never anything but zero, as far as a state of this file's statistics tells."""
    if isinstance(state, SquaredNorms):
        return state.mean_sq == 0
    if isinstance(state, Gram):
        return state.dead
    parts = state.values() if isinstance(state, Mapping) else ()
    return next((found for part in parts if (found := never_seen(part)) is not None), None)


def together(parts: Mapping[str, Statistic]) -> Statistic:
    """Several statistics of the same inputs as one, whose state holds theirs by name."""

    def init(width: int, device: torch.device) -> ActivationStats:
        return {name: part.init(width, device) for name, part in parts.items()}

    def update(state: ActivationStats, inputs: Tensor) -> ActivationStats:
        return {name: part.update(state[name], inputs) for name, part in parts.items()}

    def add(state: ActivationStats, inputs: Tensor) -> ActivationStats:
        return {name: part.see(state[name], inputs, exact=False) for name, part in parts.items()}

    def merge(states: Sequence[ActivationStats]) -> ActivationStats:
        return {name: part.merge([state[name] for state in states]) for name, part in parts.items() if part.merge}

    return Statistic(init, update, add, merge if all(part.merge for part in parts.values()) else None)


squared_norms = Statistic(_no_norms, _add_norms, _add_norms_at_once, _merge_norms)
"""The mean squared norm of each input."""

gram = Statistic(_no_gram, _add_gram, _add_gram_at_once, _merge_grams)
"""Twice the mean Gram matrix: the Hessian of the squared output error, up to the number of outputs."""
