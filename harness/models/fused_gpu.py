"""The element-wise steps of LLaMA-like blocks as one Triton kernel each: norm, rotary embedding, gated activation.

In 16 bits these steps are bound by memory, and a model's own code reads and writes its tensors several times over. Each
kernel rounds where that code rounds. Shapes: T tokens, D hidden size; B windows, H heads, L tokens of a window.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LARGEST_NORM = 32768
"""The widest hidden size that one program holds in registers."""


@triton.jit
def _rms_norm(hidden, weight, out, width, eps, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64) * width
    place = tl.arange(0, WIDTH)
    inside = place < width
    given = tl.load(hidden + row + place, mask=inside, other=0.0)
    value = given.to(tl.float32)
    normed = (value * tl.math.rsqrt(tl.sum(value * value, 0) / width + eps)).to(given.dtype)
    tl.store(out + row + place, normed * tl.load(weight + place, mask=inside, other=0.0), mask=inside)


def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / √(mean x² + ε), rounded, times the weight (D,), for hidden states (…, D)."""
    hidden = hidden.contiguous()
    out, width = torch.empty_like(hidden), hidden.shape[-1]
    size = triton.next_power_of_2(width)
    with torch.cuda.device_of(hidden):
        _rms_norm[(hidden.numel() // width,)](
            hidden, weight, out, width, eps, WIDTH=size, num_warps=min(16, max(1, size // 512))
        )
    return out


@triton.jit
def _rotate(  # type: ignore[no-untyped-def]
    states, cosine, sine, out, heads, length, half,
    window_stride, head_stride, token_stride, out_window, out_head, out_token, cos_window, cos_token,
    HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    window, token = tl.program_id(0) // length, tl.program_id(0) % length
    head, place = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    inside = (head < heads) & (place < half)
    at = window.to(tl.int64) * window_stride + token.to(tl.int64) * token_stride + head * head_stride + place
    first = tl.load(states + at, mask=inside, other=0.0)
    second = tl.load(states + at + half, mask=inside, other=0.0)
    turn = window * cos_window + token * cos_token + place
    cos_1 = tl.load(cosine + turn, mask=place < half, other=0.0)
    cos_2 = tl.load(cosine + turn + half, mask=place < half, other=0.0)
    sin_1 = tl.load(sine + turn, mask=place < half, other=0.0)
    sin_2 = tl.load(sine + turn + half, mask=place < half, other=0.0)
    to = window.to(tl.int64) * out_window + token.to(tl.int64) * out_token + head * out_head + place
    tl.store(out + to, first * cos_1 - second * sin_1, mask=inside)
    tl.store(out + to + half, second * cos_2 + first * sin_2, mask=inside)


def _rotated(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    windows, heads, length, width = states.shape
    states = states if states.stride(-1) == 1 else states.contiguous()
    out = torch.empty(windows, length, heads, width, dtype=states.dtype, device=states.device).transpose(1, 2)
    cosine, sine = cosine.contiguous(), sine.contiguous()
    with torch.cuda.device_of(states):
        _rotate[(windows * length,)](
            states, cosine, sine, out, heads, length, width // 2,
            *states.stride()[:3], *out.stride()[:3],
            0 if cosine.shape[0] == 1 else cosine.stride(0), cosine.stride(1),
            HEADS=triton.next_power_of_2(heads), HALF=triton.next_power_of_2(width // 2), enable_fp_fusion=False,
        )  # fmt: skip
    return out


def rotate(
    queries: Tensor, keys: Tensor, cosine: Tensor, sine: Tensor, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:
    """x cos + (−x₂, x₁) sin for queries and keys (B, H, L, Dh), with cos and sin (1 or B, L, Dh)."""
    assert unsqueeze_dim == 1, "the heads come before the tokens"
    return _rotated(queries, cosine, sine), _rotated(keys, cosine, sine)


@triton.jit
def _gate(gate, up, out, n, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = place < n
    given = tl.load(gate + place, mask=inside, other=0.0)
    value = given.to(tl.float32)
    active = (value * tl.sigmoid(value)).to(given.dtype)
    tl.store(out + place, active * tl.load(up + place, mask=inside, other=0.0), mask=inside)


def silu_times(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) ⊙ up for tensors (…, F)."""
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    with torch.cuda.device_of(gate):
        _gate[(triton.cdiv(gate.numel(), 4096),)](gate, up, out, gate.numel(), SIZE=4096, num_warps=8)
    return out
