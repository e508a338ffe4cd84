"""Shared arithmetic of the methods.

Shapes: I inputs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from harness.core.errors import UserError

LADDER = 4
"""Tries of the factorisation, each with ten times the damping of the one before."""


def is_short_on_gpu(tensor: Tensor) -> bool:
    """Whether it has 16 bits and lies on a GPU, where a product in float32 rounds nothing but its sum."""
    return tensor.is_cuda and tensor.dtype in (torch.float16, torch.bfloat16)


class Inverse(NamedTuple):
    """(G + λI)⁻¹ (I, I), its upper Cholesky factor U with Uᵀ U equal to it, and the damping behind λ."""

    matrix: Tensor
    factor: Tensor
    damping: float


def damped_inverse(gram: Tensor, damping: float) -> Inverse:
    """The inverse of the damped Gram matrix (I, I) and its factor.

    λ is `damping` times the mean of the diagonal; when the factorisation fails it is raised tenfold, three times.

    Raises:
        UserError: the matrix cannot be factorised even so (it is not finite, say).
    """
    mean = gram.diagonal().mean()
    for attempt in range(LADDER):
        used = damping * 10**attempt
        damped = gram.clone()
        damped.diagonal().add_(used * mean)
        lower, info = torch.linalg.cholesky_ex(damped)
        if info.item() == 0:
            inverse = torch.cholesky_inverse(lower)
            upper, info = torch.linalg.cholesky_ex(inverse, upper=True)
            if info.item() == 0 and bool(torch.isfinite(upper).all()):
                return Inverse(inverse, upper, used)
    raise UserError(
        f"the Gram matrix of the calibration inputs cannot be factorised, even with damping {used:g}; "
        "use more calibration windows or a larger damping."
    )
