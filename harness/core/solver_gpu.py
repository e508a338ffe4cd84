"""Steps of solvers between their products, as Triton kernels: every matrix is read and written once a step.

Shapes: R rows (outputs), I inputs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
"""Numbers of one program where rows do not matter as a whole."""
TINY = tl.constexpr(1e-30)
LARGEST = tl.constexpr(60000.0)
"""The largest half-precision number, nearly."""


def _grid(rows: int, inputs: int) -> tuple[int, int]:
    return rows, triton.cdiv(inputs, BLOCK)


def _warps(width: int) -> int:
    return min(16, max(4, width // 512))


@triton.jit
def _halves(x, parts, scales, inputs, PARTS: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    inside = column < inputs
    value = tl.load(x + row * inputs + column, mask=inside, other=0.0)
    scale = tl.maximum(tl.max(tl.abs(value), 0), TINY)
    value = value / scale
    high = value.to(tl.float16)
    place = parts + row * (inputs * PARTS) + column
    tl.store(place, high, mask=inside)
    if PARTS == 3:
        tl.store(place + inputs, (value - high.to(tl.float32)).to(tl.float16), mask=inside)
        tl.store(place + 2 * inputs, high, mask=inside)
    tl.store(scales + row, scale)


def halves(x: Tensor, parts: int) -> tuple[Tensor, Tensor]:
    """Rows (R, I) over the largest of each (R, 1), in half precision; of 3 `parts` the second is what that lacks."""
    x = x.contiguous()
    rows, inputs = x.shape
    made = torch.empty(rows, parts * inputs, dtype=torch.float16, device=x.device)
    scales = torch.empty(rows, 1, device=x.device)
    width = triton.next_power_of_2(inputs)
    with torch.cuda.device_of(x):
        _halves[(rows,)](x, made, scales, inputs, PARTS=parts, WIDTH=width, num_warps=_warps(width))
    return made, scales


@triton.jit
def _push(free, kept, dense, scales, made, inputs, ratio, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < inputs
    place = row * inputs + column
    stays = tl.load(kept + place, mask=inside, other=0) != 0
    value = tl.load(free + place, mask=inside, other=0.0) * tl.where(stays, 1.0, -ratio)
    value = (value - tl.load(dense + place, mask=inside, other=0.0)) / tl.load(scales + row)
    value = tl.minimum(tl.maximum(value, -LARGEST), LARGEST)
    tl.store(made + place, value.to(tl.float16), mask=inside)


def push(free: Tensor, kept: Tensor, dense: Tensor, scales: Tensor, ratio: float) -> Tensor:
    """((D − W) − V/ρ) (R, I) over the scales (R, 1) of rows, in half precision; V is ρ `ratio` times what is free."""
    made = torch.empty(free.shape, dtype=torch.float16, device=free.device)
    rows, inputs = free.shape
    with torch.cuda.device_of(free):
        _push[_grid(rows, inputs)](free, kept.view(torch.int8), dense, scales, made, inputs, ratio, BLOCK=BLOCK)
    return made


@triton.jit
def _pull(free, kept, dense, scales, product, made, inputs, ratio, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < inputs
    place = row * inputs + column
    stays = tl.load(kept + place, mask=inside, other=0) != 0
    value = tl.load(free + place, mask=inside, other=0.0) * tl.where(stays, 0.0, ratio)
    value += tl.load(dense + place, mask=inside, other=0.0)
    value += tl.load(product + place, mask=inside, other=0.0) * tl.load(scales + row)
    tl.store(made + place, value, mask=inside)


def pull(
    free: Tensor, kept: Tensor, dense: Tensor, scales: Tensor, product: Tensor, ratio: float, made: Tensor
) -> None:
    """Put B + V/ρ (R, I) into what may be `free` itself, for B = W + the product (R, I) times the scales (R, 1)."""
    rows, inputs = free.shape
    with torch.cuda.device_of(free):
        _pull[_grid(rows, inputs)](
            free, kept.view(torch.int8), dense, scales, product, made, inputs, ratio, BLOCK=BLOCK
        )


@triton.jit
def _blend(  # type: ignore[no-untyped-def]
    low, high, made, size, a, b, c, d, e, f, BLOCK: tl.constexpr
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    total = a * tl.load(low + place, mask=inside, other=0.0).to(tl.float32)
    total += b * tl.load(low + size + place, mask=inside, other=0.0).to(tl.float32)
    total += c * tl.load(low + 2 * size + place, mask=inside, other=0.0).to(tl.float32)
    total += d * tl.load(high + place, mask=inside, other=0.0).to(tl.float32)
    total += e * tl.load(high + size + place, mask=inside, other=0.0).to(tl.float32)
    total += f * tl.load(high + 2 * size + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(made + place, total.to(made.dtype.element_ty), mask=inside)


def blend(low: Tensor, high: Tensor, weights: list[float], dtype: torch.dtype) -> Tensor:
    """Σ wₚ Tₚ (I, I) over twice three matrices (3, I, I) in half precision, summed in float32."""
    made = torch.empty(low.shape[1:], dtype=dtype, device=low.device)
    size = made.numel()
    with torch.cuda.device_of(low):
        _blend[(triton.cdiv(size, 4 * BLOCK),)](low, high, made, size, *weights, BLOCK=4 * BLOCK)
    return made


@triton.jit
def _descend(  # type: ignore[no-untyped-def]
    product, scales, factor, direction, residual, x, kept, lengths, made, inputs, WIDTH: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    inside = column < inputs
    place = row * inputs + column
    along = tl.load(direction + place, mask=inside, other=0.0)
    image = tl.load(product + place, mask=inside, other=0.0) * (tl.load(scales + row) * tl.load(factor))
    length = tl.load(lengths + row)
    curved = tl.sum(along * image, 0)
    step = tl.where(curved > 0, length / curved, 0.0)
    tl.store(x + place, tl.load(x + place, mask=inside, other=0.0) + step * along, mask=inside)
    stays = tl.load(kept + place, mask=inside, other=0) != 0
    left = tl.load(residual + place, mask=inside, other=0.0) - step * tl.where(stays, image, 0.0)
    tl.store(residual + place, left, mask=inside)
    after = tl.sum(left * left, 0)
    along = along * tl.where(length > 0, after / length, 0.0) + left
    tl.store(direction + place, along, mask=inside)
    scale = tl.maximum(tl.max(tl.abs(along), 0), TINY)
    tl.store(made + place, (along / scale).to(tl.float16), mask=inside)
    tl.store(scales + row, scale)
    tl.store(lengths + row, after)


def descend(
    product: Tensor, factor: Tensor, scales: Tensor, direction: Tensor, residual: Tensor, x: Tensor, kept: Tensor,
    lengths: Tensor, made: Tensor,
) -> None:  # fmt: skip
    """A step of conjugate gradients a row (R, I), all in place: X, residual, direction, and the latter's halves.

    Args:
        product: the last halves times the matrix; with `scales` (R, 1) and the `factor` (), the direction's image.
        lengths: the squared norms (R, 1) of the residuals.
        made: where the new direction goes in half precision, over its `scales`.
    """
    rows, inputs = x.shape
    width = triton.next_power_of_2(inputs)
    with torch.cuda.device_of(x):
        _descend[(rows,)](
            product, scales, factor, direction, residual, x, kept.view(torch.int8), lengths, made, inputs,
            WIDTH=width, num_warps=_warps(width),
        )  # fmt: skip
