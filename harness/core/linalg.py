"""Shared arithmetic of the methods.

Shapes: I inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from harness.runtime.errors import UserError

STRIP = 1024
"""Rows that are mirrored at a time."""
TRIES = 4
"""Tries of the factorisation, each with ten times the damping of the one before."""


def is_short_on_gpu(tensor: Tensor) -> bool:
    """Return whether it has 16 bits and lies on a GPU, where a product in float32 rounds nothing but its sum."""
    return tensor.is_cuda and tensor.dtype in (torch.float16, torch.bfloat16)


@contextmanager
def products_like(weight: Tensor) -> Iterator[None]:
    """Float32 products on a GPU in TF32 where the model has 16 bits: no fewer bits than its own products have."""
    before = torch.get_float32_matmul_precision()
    if is_short_on_gpu(weight):
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class Inverse(NamedTuple):
    """(G + λI)⁻¹ (I, I), its upper Cholesky factor U with Uᵀ U equal to it, and the damping behind λ."""

    matrix: Tensor
    factor: Tensor
    damping: float


class Factor(NamedTuple):
    """The factor U (I, I) alone, not looked at yet: `ok` () will say on the device whether it is one.

    `ready` is the event after which it is there, where it was made on another stream.
    """

    factor: Tensor
    damping: float
    ok: Tensor
    ready: torch.cuda.Event | None = None

    def here(self) -> Factor:
        """The same for use on the current stream, which waits for it; the host does not."""
        if self.ready is None:
            return self
        stream = torch.cuda.current_stream(self.factor.device)
        stream.wait_event(self.ready)
        self.factor.record_stream(stream)
        self.ok.record_stream(stream)
        return self._replace(ready=None)


@lru_cache(maxsize=8)
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def beside(work: Callable[[], Factor], source: Tensor) -> Factor:
    """Let a GPU make a factor from `source` on a stream of its own; on a CPU it is made at once."""
    if not source.is_cuda:
        return work()
    side = _side_stream(source.device)
    side.wait_stream(torch.cuda.current_stream(source.device))
    with torch.cuda.stream(side):
        made = work()
        source.record_stream(side)
        return made._replace(ready=side.record_event())


def not_finite(inputs: str) -> UserError:
    """The error for inputs that overflow, themselves or squared; no damping mends it."""
    return UserError(
        f"{inputs} are not finite, or too large for their squares to be: the activations overflow in this dtype; take "
        "dtype=bfloat16 or dtype=float32, or look for the weights that make them so large."
    )


def damped_inverse(gram: Tensor, damping: float) -> Inverse:
    """The inverse of the damped Gram matrix (I, I) and its factor.

    λ is `damping` times the mean of the diagonal; when the factorisation fails it is raised tenfold, three times.

    Raises:
        UserError: the matrix is not finite, or cannot be factorised even so.
    """
    mean = gram.diagonal().mean()
    for attempt in range(TRIES):
        used = damping * 10**attempt
        damped = gram.clone()
        damped.diagonal().add_(used * mean)
        lower, info = torch.linalg.cholesky_ex(damped)
        if info.item() == 0:
            inverse = torch.cholesky_inverse(lower)
            upper, info = torch.linalg.cholesky_ex(inverse, upper=True)
            if info.item() == 0 and bool(torch.isfinite(upper).all()):
                return Inverse(inverse, upper, used)
    if not bool(torch.isfinite(gram).all()):
        raise not_finite("the calibration inputs of a matrix")
    raise UserError(
        f"the Gram matrix of the calibration inputs cannot be factorised, even with damping {used:g}; "
        "use more calibration windows or a larger damping."
    )


def unchecked_factor(gram: Tensor, damping: float) -> Factor:
    """The factor of `damped_inverse` by a quarter of its operations, and without waiting for a GPU.

    With J the reversal and L Lᵀ = J (G + λI) J, the inverse is (J L⁻¹ J)ᵀ (J L⁻¹ J), and J L⁻¹ J is upper triangular.
    """
    damped = gram.flip(0, 1)
    damped.diagonal().add_(damping * gram.diagonal().mean())
    lower, info = torch.linalg.cholesky_ex(damped)
    del damped
    upper = inverse_of_lower(lower).flip(0, 1)
    return Factor(upper, damping, (info == 0) & torch.isfinite(upper.diagonal()).all())


HALVED_FROM = 2048
"""From this width on triangles are inverted and squared by halves, which leaves out most products with zeros."""


def inverse_of_lower(lower: Tensor) -> Tensor:
    """The inverse of a lower triangular matrix (I, I)."""
    width = lower.shape[0]
    if width < HALVED_FROM:
        identity = torch.eye(width, dtype=lower.dtype, device=lower.device)
        return torch.linalg.solve_triangular(lower, identity, upper=False)
    half = width // 2
    inverse = torch.zeros_like(lower)
    first, second = inverse_of_lower(lower[:half, :half]), inverse_of_lower(lower[half:, half:])
    inverse[:half, :half], inverse[half:, half:] = first, second
    inverse[half:, :half] = -(second @ (lower[half:, :half] @ first))
    return inverse


def square_of_lower(lower: Tensor) -> Tensor:
    """Lᵀ L (I, I) of a lower triangular matrix, by halves: a third of the operations of the whole product."""
    width = len(lower)
    if width < HALVED_FROM:
        return lower.T @ lower
    half = width // 2
    corner, below, rest = lower[:half, :half], lower[half:, :half], lower[half:, half:]
    square = torch.empty_like(lower)
    square[:half, :half] = square_of_lower(corner).addmm_(below.T, below)
    square[half:, :half] = rest.T @ below
    square[:half, half:] = square[half:, :half].T
    square[half:, half:] = square_of_lower(rest)
    return square


def mirrored(lower: Tensor) -> Tensor:
    """The symmetric matrix (I, I) of which only the lower triangle is known, in place."""
    for start in range(0, len(lower), STRIP):
        rows, behind = slice(start, start + STRIP), slice(start + STRIP, None)
        corner = lower[rows, rows]
        corner.copy_(corner.tril() + corner.tril(-1).T)
        lower[rows, behind] = lower[behind, rows].T
    return lower
