"""Stand-ins for a sub-layer or a norm that is gone: the residual stream passes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

UPDATE = "update"
"""The name of a low-rank map in the module that it belongs to."""


def nothing(hidden_states: Tensor, residual: Tensor | None = None) -> Tensor:
    """Output of a sub-layer that adds nothing: the residual stream where it is to add it itself, zeros elsewhere."""
    return torch.zeros_like(hidden_states) if residual is None else residual


class LowRank(nn.Module):
    """A linear map of low rank, which adds B A h to hidden states h (B, L, D): A (r, D), B (D, r)."""

    def __init__(self, rank: int, width: int, like: Tensor) -> None:
        super().__init__()
        self.A = nn.Parameter(like.new_empty(rank, width), requires_grad=False)
        self.B = nn.Parameter(like.new_zeros(width, rank), requires_grad=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """The term (B, L, D) that is added."""
        return functional.linear(functional.linear(hidden_states, self.A), self.B)


class Skipped(nn.Module):
    """A sub-layer that adds nothing, or a constant: the bias (D,) of a child that has the name of its last linear.

    With a child `update` it adds that map of what it is given, too.
    """

    def __init__(self, last: str) -> None:
        super().__init__()
        self.last = last

    def forward(self, hidden_states: Tensor, residual: Tensor | None = None, **named: Any) -> Any:
        """Take what the sub-layer is called with, and give what it would give."""
        added = nothing(hidden_states, residual)
        child: Any = self._modules.get(self.last)
        added = added if child is None else added + child.bias
        update = self._modules.get(UPDATE)
        return added if update is None else added + update(hidden_states)

    @property
    def constant(self) -> Tensor | None:
        """The constant (D,) that the sub-layer adds, if it adds one."""
        child: Any = self._modules.get(self.last)
        return None if child is None else child.bias

    def add(self, bias: Tensor) -> None:
        """Let the sub-layer add a constant (D,), in place of what it added."""
        child = nn.Module()
        child.bias = nn.Parameter(bias, requires_grad=False)
        self.add_module(self.last, child)


class SkippedAttention(Skipped):
    """Attention that adds nothing, or a constant.

    Models read the number of the tokens so far from the first of a cache's layers, or the first of a kind. So each
    layer has an entry: a key and a value of one zero a token.
    """

    def __init__(self, last: str, layer_idx: int) -> None:
        super().__init__(last)
        self.layer_idx = layer_idx

    def forward(self, hidden_states: Tensor, residual: Tensor | None = None, **named: Any) -> Any:
        """Take what attention is called with, and give what it would give."""
        cache = next((one for name in ("past_key_values", "layer_past") if (one := named.get(name)) is not None), None)
        if cache is not None:
            token = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
            cache.update(token, token, self.layer_idx)
        return super().forward(hidden_states, residual), None


class SkippedLinear(Skipped):
    """The last linear of a feed-forward part that is no module of its own: its input has the width of its output."""

    def __init__(self) -> None:
        super().__init__("")
        self.bias: nn.Parameter | None = None

    def forward(self, hidden_states: Tensor, residual: Tensor | None = None, **named: Any) -> Any:
        """Zeros, or the bias (D,)."""
        added = nothing(hidden_states)
        return added if self.bias is None else added + self.bias

    @property
    def constant(self) -> Tensor | None:
        """The constant (D,) that the part adds, if it adds one."""
        return self.bias

    def add(self, bias: Tensor) -> None:
        """Let the part add a constant (D,), in place of what it added."""
        self.bias = nn.Parameter(bias, requires_grad=False)
