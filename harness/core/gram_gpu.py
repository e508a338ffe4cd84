"""X Xᵀ on a GPU by half of its products: the tiles on and below the diagonal.

Shapes: T tokens, I inputs.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 128
DEPTH = 64
"""Outputs of a program in either direction; tokens of one step."""
TILES_TOGETHER = 8
"""Rows of tiles that follow one another, so that what they share is still in the cache."""


@triton.jit
def _lower_products(  # type: ignore[no-untyped-def]
    inputs, gram, tiles, width, tokens, before, weight,
    TILE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    row = tl.load(tiles + 2 * tl.program_id(0)) * TILE + tl.arange(0, TILE)
    column = tl.load(tiles + 2 * tl.program_id(0) + 1) * TILE + tl.arange(0, TILE)
    sums = tl.zeros((TILE, TILE), dtype=tl.float32)
    for start in range(0, tokens, DEPTH):
        token = start + tl.arange(0, DEPTH)
        left_inside = (token[None, :] < tokens) & (row[:, None] < width)
        right_inside = (token[:, None] < tokens) & (column[None, :] < width)
        left = tl.load(inputs + token[None, :].to(tl.int64) * width + row[:, None], mask=left_inside, other=0.0)
        right = tl.load(inputs + token[:, None].to(tl.int64) * width + column[None, :], mask=right_inside, other=0.0)
        sums = tl.dot(left, right, sums)
    inside = (row[:, None] < width) & (column[None, :] < width)
    place = gram + row[:, None].to(tl.int64) * width + column[None, :]
    tl.store(place, tl.load(place, mask=inside, other=0.0) * before + sums * weight, mask=inside)


@lru_cache(maxsize=16)
def _tiles(count: int, device: torch.device) -> Tensor:
    """(tiles, 2): rows and columns of the tiles on and below the diagonal of count × count, near ones together."""
    pairs = [
        (row, column)
        for top in range(0, count, TILES_TOGETHER)
        for column in range(min(top + TILES_TOGETHER, count))
        for row in range(max(top, column), min(top + TILES_TOGETHER, count))
    ]
    return torch.tensor(pairs, dtype=torch.int32, device=device)


def add_lower(gram: Tensor, inputs: Tensor, before: float, weight: float) -> None:
    """G ← before · G + weight · X Xᵀ, below and on the diagonal of G (I, I) at least, for inputs (T, I) of 16 bits."""
    inputs = inputs.contiguous()
    tokens, width = inputs.shape
    tiles = _tiles(triton.cdiv(width, TILE), inputs.device)
    with torch.cuda.device_of(inputs):
        _lower_products[(len(tiles),)](
            inputs, gram, tiles, width, tokens, before, weight, TILE=TILE, DEPTH=DEPTH, num_warps=4, num_stages=3
        )
