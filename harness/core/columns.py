"""SparseGPT's walk over one block of columns: each removed weight is compensated by the columns to its right.

Shapes: O outputs, B columns of the block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.core.pattern import NofM, Pattern, Unstructured, keep

KERNEL_WIDTH = 256
"""The widest block that the kernel holds in registers."""


def prune_columns(block: Tensor, factor: Tensor, divisor: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor, Tensor]:
    """One column block (O, B) with its part U (B, B) of the inverse factor → pruned block, scaled errors, kept.

    The score of a weight is w² over the `divisor` (B,) of its column.
    On a GPU one kernel walks all columns of a block of usual width, with the same roundings as the loop here.
    """
    kept = None
    if isinstance(pattern, Unstructured):
        kept = keep(block**2 / divisor, pattern, "matrix", quota="threshold")
    if block.is_cuda and block.shape[1] <= KERNEL_WIDTH:
        from harness.core.columns_gpu import walk  # Triton comes with torch's CUDA builds only

        return walk(block, factor, divisor, kept, pattern if isinstance(pattern, NofM) else None)
    return _walk(block, factor, divisor, kept, pattern)


def _walk(
    block: Tensor, factor: Tensor, divisor: Tensor, chosen: Tensor | None, pattern: Pattern
) -> tuple[Tensor, Tensor, Tensor]:
    """The columns are kept as rows (B, O) while we walk over them, so that each step touches contiguous memory."""
    diagonal = factor.diagonal().clone()
    rest = block.T.contiguous()  # (B, O)
    kept = torch.empty_like(rest, dtype=torch.bool) if chosen is None else chosen.T.contiguous()
    errors = torch.empty_like(rest)
    for i in range(rest.shape[0]):
        if isinstance(pattern, NofM) and i % pattern.of == 0:
            group = slice(i, i + pattern.of)
            kept[group] = keep(rest[group].T ** 2 / divisor[group], pattern).T
        errors[i] = torch.where(kept[i], 0, rest[i]) / diagonal[i]
        rest[i + 1 :] -= torch.outer(factor[i, i + 1 :], errors[i])
    return (rest * kept).T, errors.T, kept.T
