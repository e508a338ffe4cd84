"""The elementwise updates of SparseLLM as two Triton kernels: each reads its tensors once, and writes the next ones.

Operation for operation those of `updates.py`; only the activation's own rounding differs. Shapes: T tokens, F
feed-forward size; R·F columns hold the gate's and the up matrix's side by side, or those of the one there is.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from harness.methods.sparsellm.updates import SHORTER, STEPS, Penalties

BLOCK = 512
"""Elements of one program."""


@triton.jit
def _phi(x, KIND: tl.constexpr):  # type: ignore[no-untyped-def]
    """φ(x) and φ′(x)."""
    if KIND == "silu":
        share = tl.sigmoid(x)
        value = x * share
        slope = share + value * (1 - share)
    elif KIND == "gelu":
        share = 0.5 * (1 + tl.erf(x * 0.7071067811865476))
        value = x * share
        slope = share + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    elif KIND == "gelu_tanh":
        share = tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
        value = x * share
        slope = share + value * (1 - share) * 1.5957691216057308 * (1 + 0.134145 * x * x)
    else:
        value = tl.maximum(x, 0.0)
        slope = tl.where(x > 0, 1.0, 0.0)
    return value, slope


@triton.jit
def _opened(wide, at, inside, width, GATED: tl.constexpr, KIND: tl.constexpr):  # type: ignore[no-untyped-def]
    """φ(gate) ⊙ up, or φ(up)."""
    value, _ = _phi(tl.load(wide + at, mask=inside, other=0.0), KIND)
    if GATED:
        value = value * tl.load(wide + at + width, mask=inside, other=0.0)
    return value


@triton.jit
def _hidden(  # type: ignore[no-untyped-def]
    wide, state, out, width, behind, GATED: tl.constexpr, BOTH: tl.constexpr, KIND: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    at = row * (2 * width if GATED else width) + column
    place = row * width + column
    tl.store(out + place, _opened(wide, at, inside, width, GATED, KIND), mask=inside)
    if BOTH:
        tl.store(out + behind + place, _opened(state, at, inside, width, GATED, KIND), mask=inside)


@triton.jit
def _within(  # type: ignore[no-untyped-def]
    start, to, p, scale, ratio, KIND: tl.constexpr, STEPS: tl.constexpr, SHORTER: tl.constexpr
):
    """Gauss-Newton steps of `updates.inside`."""
    best = start
    trial = start
    lowest = tl.where(start == start, float("inf"), float("inf"))
    step = tl.zeros_like(start)
    for _ in tl.static_range(STEPS):
        value, slope = _phi(trial, KIND)
        rest = p - scale * value
        pull = scale * slope
        away = to - trial
        newton = (pull * rest + ratio * away) / (pull * pull + ratio)
        cost = rest * rest + ratio * away * away
        better = cost < lowest
        best = tl.where(better, trial, best)
        lowest = tl.where(better, cost, lowest)
        step = tl.where(better, newton, SHORTER * step)
        trial = best + step
    value, _ = _phi(trial, KIND)
    rest = p - scale * value
    away = to - trial
    return tl.where(rest * rest + ratio * away * away < lowest, trial, best)


@triton.jit
def _by_relu(m, p, alpha, gamma):  # type: ignore[no-untyped-def]
    """The better of the best positive and the best negative z, as `updates.relu_z`."""
    positive = tl.maximum((alpha * m + gamma * p) / (alpha + gamma), 0.0)
    negative = tl.minimum(m, 0.0)
    cost_of_positive = gamma * (p - positive) * (p - positive) + alpha * (positive - m) * (positive - m)
    cost_of_negative = gamma * p * p + alpha * (negative - m) * (negative - m)
    return tl.where(cost_of_positive <= cost_of_negative, positive, negative)


@triton.jit
def _move(  # type: ignore[no-untyped-def]
    wide, state, lift, p_out, residual, width, alpha, gamma, scale,
    GATED: tl.constexpr, KIND: tl.constexpr, STEPS: tl.constexpr, SHORTER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    at = row * (2 * width if GATED else width) + column
    place = row * width + column
    first = tl.load(wide + at, mask=inside, other=0.0)
    old = tl.load(state + at, mask=inside, other=0.0)
    value, _ = _phi(old, KIND)
    lifted = tl.load(lift + place, mask=inside, other=0.0) * scale
    if GATED:
        up = tl.load(wide + at + width, mask=inside, other=0.0)
        p = value * tl.load(state + at + width, mask=inside, other=0.0) + lifted
        weight = gamma / alpha
        z = (up + weight * value * p) / (value * value * weight + 1)
        new = _within(old, first, p, z, alpha / gamma, KIND, STEPS, SHORTER)
        tl.store(state + at + width, z, mask=inside)
        tl.store(residual + at + width, z - up, mask=inside)
    else:
        p = value + lifted
        if KIND == "relu":
            new = _by_relu(first, p, alpha, gamma)
        else:
            new = _within(old, first, p, tl.full((BLOCK,), 1.0, tl.float32), alpha / gamma, KIND, STEPS, SHORTER)
    tl.store(p_out + place, p, mask=inside)
    tl.store(state + at, new, mask=inside)
    tl.store(residual + at, new - first, mask=inside)


def hidden(wide: Tensor, state: Tensor | None, kind: str, dtype: torch.dtype, *, gated: bool) -> Tensor:
    """φ(gate) ⊙ up, or φ(up), of what is before the activation (T, R·F) and of the variables: (1 or 2, T, F)."""
    tokens, width = len(wide), wide.shape[1] // (2 if gated else 1)
    out = torch.empty(1 if state is None else 2, tokens, width, dtype=dtype, device=wide.device)
    with torch.cuda.device_of(wide):
        _hidden[(tokens, triton.cdiv(width, BLOCK))](
            wide, wide if state is None else state, out, width, tokens * width,
            GATED=gated, BOTH=state is not None, KIND=kind, BLOCK=BLOCK, num_warps=4,
        )  # fmt: skip
    return out


def move(
    wide: Tensor, state: Tensor, lift: Tensor, kind: str, penalties: Penalties, dtype: torch.dtype, *, gated: bool
) -> tuple[Tensor, Tensor]:
    """p (T, F) and what the variables, set anew in place, are beyond what is before the activation (T, R·F).

    Args:
        lift: W_downᵀ times what p leaves of the target (T, F), in which p is φ(s) ⊙ z and β/γ times this.
    """
    tokens, width = lift.shape
    p, residual = torch.empty_like(lift, dtype=dtype), torch.empty_like(wide, dtype=dtype)
    with torch.cuda.device_of(wide):
        _move[(tokens, triton.cdiv(width, BLOCK))](
            wide, state, lift, p, residual, width, penalties.alpha, penalties.gamma, penalties.beta / penalties.gamma,
            GATED=gated, KIND=kind, STEPS=STEPS, SHORTER=SHORTER, BLOCK=BLOCK, num_warps=4,
        )  # fmt: skip
    return p, residual
