"""Statistics of a linear's inputs for single methods: signed sums and how they vary (DSnoT), the last window (Thanos).

Shapes: W windows of L tokens each, I inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from harness.core.statistic import Statistic


class Moments(NamedTuple):
    """The mean over windows of Σ x (I,), the mean of the variances within each window (I,), the number of windows.

    A window weighs as much as it has tokens in the released code; all of a run are equally long.
    """

    total: Tensor
    variance: Tensor
    windows: int


def _none(width: int, device: torch.device) -> Moments:
    return Moments(torch.zeros(width, device=device), torch.zeros(width, device=device), 0)


def _add(state: Moments, inputs: Tensor) -> Moments:
    return _added(state, inputs[None])


def _added(state: Moments, inputs: Tensor) -> Moments:
    """Several windows (W, L, I), one after the other or at once."""
    inputs = inputs.float()
    windows = state.windows + len(inputs)
    before = state.windows / windows
    total = state.total * before + inputs.sum(dim=(0, 1)) / windows
    variance = state.variance * before + inputs.var(dim=1, correction=0).sum(dim=0) / windows
    return Moments(total, variance, windows)


def _merged(states: Sequence[Moments]) -> Moments:
    windows, device = sum(state.windows for state in states), states[0].total.device
    shares = [state.windows / max(1, windows) for state in states]
    parts = list(zip(states, shares, strict=True))
    total = torch.stack([state.total.to(device) * share for state, share in parts]).sum(dim=0)
    variance = torch.stack([state.variance.to(device) * share for state, share in parts]).sum(dim=0)
    return Moments(total, variance, windows)


moments = Statistic(_none, _add, _added, _merged)
"""Signed sums and variances of each input."""


def _last(state: Tensor, inputs: Tensor) -> Tensor:
    return inputs.float().square().sum(dim=0)


last_norms = Statistic(
    lambda width, device: torch.zeros(width, device=device),
    _last,
    lambda state, inputs: _last(state, inputs[-1]),
    lambda states: states[-1].to(states[0].device),
)
"""The squared norm (I,) of each input in the last window."""
