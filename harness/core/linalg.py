"""Shared arithmetic of the methods.

Shapes: I inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.core.errors import UserError

LADDER = 4
"""Tries of the factorisation, each with ten times the damping of the one before."""


def inverse_factor(gram: Tensor, damping: float) -> tuple[Tensor, float]:
    """Upper Cholesky factor U (I, I) of the inverse of the damped Gram matrix: Uᵀ U = (G + λI)⁻¹.

    λ is `damping` times the mean of the diagonal; when the factorisation fails it is raised tenfold, three times.

    Returns:
        U and the damping that worked.

    Raises:
        UserError: the matrix cannot be factorised even so (it is not finite, say).
    """
    mean = gram.diagonal().mean()
    for attempt in range(LADDER):
        used = damping * 10**attempt
        damped = gram.clone()
        damped.diagonal().add_(used * mean)
        factor, info = torch.linalg.cholesky_ex(damped)
        if info.item() == 0:
            upper, info = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)
            if info.item() == 0 and bool(torch.isfinite(upper).all()):
                return upper, used
    raise UserError(
        f"the Gram matrix of the calibration inputs cannot be factorised, even with damping {used:g}; "
        "use more calibration windows or a larger method.damping."
    )
