"""The walk of `columns.py` as one Triton kernel: a program holds some outputs and all columns of the block.

Every weight goes through the same operations in the same order as in the loop over columns, each rounded by itself (no
fused multiply-add, correctly rounded division), so the results are equal to the bit. Shapes: O outputs, B columns.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from harness.core.pattern import NofM

ROWS = 16
"""Outputs of one program."""


@triton.jit
def _kernel(  # type: ignore[no-untyped-def]
    block, factor, divisor, chosen, pruned, errors, kept,
    outputs, stride,
    columns: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, OF: tl.constexpr, DROPPED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    inside = (row[:, None] < outputs) & (column[None, :] < columns)
    place = row[:, None] * columns + column[None, :]
    weight = tl.load(block + place, mask=inside, other=0.0)
    divided_by = tl.load(divisor + column, mask=column < columns, other=1.0)
    if OF == 0:  # noqa: SIM108
        stays = tl.load(chosen + place, mask=inside, other=1) != 0
    else:
        stays = weight == weight
    error = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    next_line = tl.load(factor + column, mask=(column > 0) & (column < columns), other=0.0)
    for i in range(columns):
        line = next_line  # the one after it is on its way while this one is used
        after = i + 1
        next_line = tl.load(factor + after * stride + column, mask=(column > after) & (column < columns), other=0.0)
        if OF > 0:  # noqa: SIM102
            if i % OF == 0:
                score = tl.div_rn(weight * weight, divided_by[None, :])
                rank = tl.zeros((ROWS, WIDTH), dtype=tl.int32)
                for k in range(i, i + OF):
                    other = tl.sum(tl.where(column[None, :] == k, score, 0.0), axis=1)[:, None]
                    lower = (other < score) | ((other == score) & (k < column[None, :]))
                    rank += lower.to(tl.int32)
                in_group = (column[None, :] >= i) & (column[None, :] < i + OF)
                stays = tl.where(in_group, rank >= DROPPED, stays)
        here = column[None, :] == i
        removed = tl.sum(tl.where(here & (stays == 0), weight, 0.0), axis=1)
        scaled = tl.div_rn(removed, tl.load(factor + i * stride + i))
        error = tl.where(here, scaled[:, None], error)
        weight -= scaled[:, None] * line[None, :]
    tl.store(pruned + place, tl.where(stays, weight, 0.0), mask=inside)
    tl.store(errors + place, error, mask=inside)
    tl.store(kept + place, stays.to(tl.int8), mask=inside)


def walk(
    block: Tensor, factor: Tensor, divisor: Tensor, chosen: Tensor | None, pattern: NofM | None
) -> tuple[Tensor, Tensor, Tensor]:
    """As `columns.prune_columns`; what is kept is `chosen` (O, B), or decided group by group for a pattern N:M."""
    block, factor, divisor = block.contiguous(), factor.contiguous(), divisor.contiguous()
    outputs, columns = block.shape
    pruned, errors = torch.empty_like(block), torch.empty_like(block)
    kept = torch.empty(block.shape, dtype=torch.int8, device=block.device)
    chosen = kept if chosen is None else chosen.contiguous().view(torch.int8)
    with torch.cuda.device_of(block):
        _kernel[triton.cdiv(outputs, ROWS),](
            block, factor, divisor, chosen, pruned, errors, kept, outputs, factor.stride(0),
            columns=columns, ROWS=ROWS, WIDTH=triton.next_power_of_2(columns),
            OF=pattern.of if pattern else 0, DROPPED=pattern.of - pattern.keep if pattern else 0,
            enable_fp_fusion=False, num_warps=4,
        )  # fmt: skip
    return pruned, errors, kept.view(torch.bool)
