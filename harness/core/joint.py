"""Thanos' step: all removed weights of a block of columns at once, each row compensated exactly.

Shapes: O outputs, B columns of the block, F columns from the block on, Q removed weights of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

ELEMENTS = {"cuda": 1 << 27, "cpu": 1 << 22}
"""Of the systems of rows that are solved at once."""


def compensated(rest: Tensor, removed: Tensor, inverse: Tensor) -> Tensor:
    """The columns from a block on (O, F), the `removed` (O, B) weights of its first B zero: argmin ΔH Δᵀ of each row.

    Lagrange multipliers λ of a row's removed columns q solve H⁻¹[q, q] λ = w_q, and Δ = −λᵀ H⁻¹[q, :].

    Args:
        inverse: the first B rows (B, F) of H⁻¹ of these columns.
    """
    width = removed.shape[1]
    counts = removed.sum(dim=1)
    longest = int(counts.max())
    multipliers = torch.zeros_like(rest[:, :width])
    if longest == 0:
        return rest.clone()
    # each row's removed columns in front of the others; those that only fill up become rows of the identity
    columns = (~removed).byte().sort(dim=1, stable=True).indices[:, :longest]
    real = torch.arange(longest, device=rest.device) < counts[:, None]
    wanted = rest[:, :width].gather(1, columns) * real
    for start in range(0, len(rest), step := max(1, ELEMENTS[rest.device.type] // longest**2)):
        rows = slice(start, start + step)
        index, both = columns[rows], real[rows, :, None] & real[rows, None, :]
        system = torch.where(both, inverse[index[:, :, None], index[:, None, :]], 0)
        system.diagonal(dim1=1, dim2=2).add_(~real[rows])
        multipliers[rows].scatter_(1, index, _solved(system, wanted[rows]))
    changed = rest - multipliers @ inverse
    changed[:, :width].masked_fill_(removed, 0)
    return changed


def working_bytes(outputs: int, width: int, *, cuda: bool) -> int:
    """About what `compensated` takes for its systems in blocks of so many columns: values, mask, indices, factor."""
    rows = min(outputs, max(1, ELEMENTS["cuda" if cuda else "cpu"] // width**2))
    return rows * width**2 * 24


def _solved(systems: Tensor, wanted: Tensor) -> Tensor:
    """Solutions (R, Q) of symmetric systems (R, Q, Q); by elimination where rounding left one not positive."""
    lower, info = torch.linalg.cholesky_ex(systems)
    if bool((info != 0).any()):
        return torch.linalg.solve(systems, wanted)
    return torch.cholesky_solve(wanted[:, :, None], lower).squeeze(2)
