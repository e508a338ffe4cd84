"""The exchanges of `swaps.py` between two choices of candidates, as one Triton kernel: a program makes those of a row.

Every number goes through the same operations as there, each rounded by itself. Shapes: I inputs, R rows, S candidates.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROUNDING = tl.constexpr(1e-5)
"""As in `swaps.py`."""


@triton.jit
def _side(index, weight, pull, none, gram, row, size, stride, S: tl.constexpr):  # type: ignore[no-untyped-def]
    """Index, weight, c, absence (1 or 0) and diagonal of the candidates (S,) of one side of a row."""
    place = tl.arange(0, S)
    inside = place < size
    at = tl.load(index + row * size + place, mask=inside, other=0)
    w = tl.load(weight + row * size + place, mask=inside, other=0.0)
    c = tl.load(pull + row * size + place, mask=inside, other=0.0)
    no = tl.load(none + row * size + place, mask=inside, other=1).to(tl.int32)
    return at, w, c, no, tl.load(gram + at * (stride + 1))


@triton.jit
def _kernel(  # type: ignore[no-untyped-def]
    back, w_back, c_back, no_back, going, w_going, c_going, no_going, gram, kept, moved,
    inputs, size, swaps, S: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, S)
    i_at, w_i, c_i, no_i, d_i = _side(back, w_back, c_back, no_back, gram, row, size, inputs, S)
    j_at, w_j, c_j, no_j, d_j = _side(going, w_going, c_going, no_going, gram, row, size, inputs, S)
    pairs = 2 * w_i[:, None] * w_j[None, :] * tl.load(gram + i_at[:, None] * inputs + j_at[None, :])
    square_i, square_j = w_i * w_i * d_i, w_j * w_j * d_j
    made = 0
    going_on = 1
    while going_on == 1:
        double_i, double_j = 2 * w_i * c_i, 2 * w_j * c_j
        a = tl.where(no_i != 0, float("inf"), square_i - double_i)
        b = tl.where(no_j != 0, float("inf"), square_j + double_j)
        best, of_back = tl.min(b[None, :] - pairs, 1, return_indices=True)
        change, i = tl.min(a + best, 0, return_indices=True)
        here_i = place == i
        j = tl.sum(tl.where(here_i, of_back, 0), 0)
        here_j = place == j
        size_i = tl.sum(tl.where(here_i, square_i + tl.abs(double_i), 0.0), 0)
        size_j = tl.sum(tl.where(here_j, square_j + tl.abs(double_j), 0.0), 0)
        going_on = tl.where(change < -ROUNDING * (size_i + size_j), 1, 0)
        if going_on == 1:
            comes, goes = tl.sum(tl.where(here_i, i_at, 0), 0), tl.sum(tl.where(here_j, j_at, 0), 0)
            w_comes, w_goes = tl.sum(tl.where(here_i, w_i, 0.0), 0), tl.sum(tl.where(here_j, w_j, 0.0), 0)
            tl.store(kept + row * inputs + comes, 1)
            tl.store(kept + row * inputs + goes, 0)
            c_i = c_i - w_comes * tl.load(gram + comes * inputs + i_at) + w_goes * tl.load(gram + goes * inputs + i_at)
            c_j = c_j - w_comes * tl.load(gram + comes * inputs + j_at) + w_goes * tl.load(gram + goes * inputs + j_at)
            no_i, no_j = tl.where(here_i, 1, no_i), tl.where(here_j, 1, no_j)
            made += 1
            going_on = tl.where(made < swaps, 1, 0)
    tl.store(moved + row, tl.where(made > 0, 1, 0).to(tl.int8))


WIDEST = 128
"""The most candidates of a side whose pairs one program holds."""


def exchange(sides: list[tuple[Tensor, ...]], gram: Tensor, kept: Tensor, swaps: int) -> Tensor:
    """Make up to so many exchanges a row, changing the mask (R, I); whether any was made in each (R, 1).

    Args:
        sides: of those that may come back and of those that may go, index, weight, c and absence (R, S).
    """
    (index, *_), _ = sides
    rows, size = index.shape
    made = torch.empty(rows, 1, dtype=torch.int8, device=kept.device)
    width = triton.next_power_of_2(size)
    given = [part.contiguous() for side in sides for part in (*side[:3], side[3].view(torch.int8))]
    with torch.cuda.device_of(kept):
        _kernel[(rows,)](
            *given, gram, kept.view(torch.int8), made, kept.shape[1], size, swaps,
            S=width, enable_fp_fusion=False, num_warps=4,
        )  # fmt: skip
    return made.view(torch.bool)
