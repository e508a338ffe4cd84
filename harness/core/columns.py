"""SparseGPT's walk over one block of columns: each removed weight is compensated by the columns to its right.

Shapes: O outputs, B columns of the block.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.core.pattern import NofM, Pattern, Quota, keep

KERNEL_WIDTH = 256
"""The widest block that the kernel holds in registers."""


def prune_columns(
    block: Tensor, factor: Tensor, divisor: Tensor, patterns: Sequence[Pattern], sizes: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """One column block (O, B) with its part U (B, B) of the inverse factor → pruned block, scaled errors, kept.

    The block may hold the outputs of several matrices, `sizes` of them each, of which each has its pattern and is a
    group of its own; N:M patterns are all the same. The score of a weight is w² over the `divisor` (B,) of its column.
    On a GPU one kernel walks all columns of a block of usual width, with the same roundings as the loop here.
    """
    pattern = patterns[0]
    kept = None if isinstance(pattern, NofM) else _choose(block**2 / divisor, patterns, sizes)
    if block.is_cuda and block.shape[1] <= KERNEL_WIDTH:
        from harness.core.columns_gpu import walk  # Triton comes with torch's CUDA builds only

        return walk(block, factor, divisor, kept, pattern if isinstance(pattern, NofM) else None)
    return _walk(block, factor, divisor, kept, pattern)


def spare_dead(block: Tensor, dead: Tensor, patterns: Sequence[Pattern], sizes: Sequence[int]) -> Tensor:
    """Mask (O, B) of the weights kept where inputs are `dead` (B,), for a column block of dense weights (O, B).

    They go before every other weight, the smallest first and of equal ones the earliest, as far as the quota of their
    group reaches; in the columns of live inputs the answer means nothing. `patterns` and `sizes` are those of
    `prune_columns`.
    """
    return _choose(torch.where(dead, block.abs(), torch.inf), patterns, sizes, "exact")


def _choose(scores: Tensor, patterns: Sequence[Pattern], sizes: Sequence[int], quota: Quota = "threshold") -> Tensor:
    """Mask (O, B) of weights kept, each matrix a group of its own, or every M weights of a row."""
    pattern = patterns[0]
    if isinstance(pattern, NofM):
        return keep(scores, pattern)
    if len(set(sizes)) == 1 == len(set(patterns)):  # each matrix is a row then
        rows = scores.reshape(len(sizes), -1)
        return keep(rows, pattern, "row", quota=quota).reshape(scores.shape)
    parts = zip(scores.split(list(sizes)), patterns, strict=True)
    return torch.cat([keep(part, wanted, "matrix", quota=quota) for part, wanted in parts])


def _walk(
    block: Tensor, factor: Tensor, divisor: Tensor, chosen: Tensor | None, pattern: Pattern
) -> tuple[Tensor, Tensor, Tensor]:
    """The columns are kept as rows (B, O) while we walk over them, so that each step touches contiguous memory.

    What is kept is divided by infinity: then its error is zero, and a column is one quotient and one product.
    """
    diagonal = factor.diagonal()[:, None]
    rest = block.T.contiguous()  # (B, O)
    errors, kept = torch.empty_like(rest), torch.empty_like(rest, dtype=torch.bool)
    by = torch.empty_like(rest)
    if chosen is not None:
        kept.copy_(chosen.T)
        by.copy_(torch.where(kept, torch.inf, diagonal))
    columns = zip(rest.unbind(), by.unbind(), errors.unbind(), factor[:, :, None].unbind(), strict=True)
    for i, (column, divided_by, error, line) in enumerate(columns):
        if isinstance(pattern, NofM) and i % pattern.of == 0:
            group = slice(i, i + pattern.of)
            kept[group] = keep(rest[group].T ** 2 / divisor[group], pattern).T
            by[group] = torch.where(kept[group], torch.inf, diagonal[group])
        torch.div(column, divided_by, out=error)
        rest[i + 1 :].sub_(line[i + 1 :] * error)
    return (rest * kept).T, errors.T, kept.T
