"""What calibration remembers of a linear's inputs: pairs of pure functions, plain sums over tokens.

Shapes: T tokens, I inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

TOKENS_PER_PRODUCT = 4096
"""Tokens summed inside one matrix product: longer sums lose accuracy on tensor cores."""


class Statistic(NamedTuple):
    """`init(I, device)` is the empty sum; `update(state, inputs (T, I))` adds tokens and may reuse the state."""

    init: Callable[[int, torch.device], Tensor]
    update: Callable[[Tensor, Tensor], Tensor]


def _add_squares(state: Tensor, inputs: Tensor) -> Tensor:
    return state + inputs.float().square().sum(dim=0)


def _add_products(state: Tensor, inputs: Tensor) -> Tensor:
    for chunk in inputs.split(TOKENS_PER_PRODUCT):
        if chunk.is_cuda and chunk.dtype in (torch.float16, torch.bfloat16):
            # products of 16-bit numbers are exact in float32, so tensor cores lose nothing but the order of the sum
            state += torch.mm(chunk.T, chunk, out_dtype=torch.float32)
        else:
            state.addmm_(chunk.T.float(), chunk.float())
    return state


sum_of_squares = Statistic(lambda width, device: torch.zeros(width, device=device), _add_squares)
"""Σ x², (I,): the squared norm of each input."""

gram = Statistic(lambda width, device: torch.zeros(width, width, device=device), _add_products)
"""Σ x xᵀ, (I, I): half the Hessian of the squared output error, up to the number of tokens."""
