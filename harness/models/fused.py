"""Putting the kernels of `fused_gpu.py` in the place of a model's own element-wise code, where both do the same.

What a module does is found out by running it: on random input the kernel's answer has to be the module's, up to one
rounding, or the module is left alone. Numbers move as far as a sum in another order moves them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

ROUNDINGS = 2
"""By how many units in the last place a kernel and the code it stands for may differ."""


@contextmanager
def fused(model: nn.Module, *, wanted: bool = True) -> Iterator[list[str]]:
    """While inside, norms, rotary embeddings and gated activations of a model on a GPU run as one kernel each.

    Yields:
        the names of what was replaced.
    """
    done: list[tuple[Any, str, Any]] = []
    names: list[str] = []
    if wanted:
        with torch.no_grad():
            for name, owner, attribute, kernel in _replacements(model):
                done.append((owner, attribute, vars(owner).get(attribute)))
                setattr(owner, attribute, kernel)
                names.append(name)
    try:
        yield names
    finally:
        for owner, attribute, before in reversed(done):
            if before is None:
                delattr(owner, attribute)
            else:
                setattr(owner, attribute, before)


def _replacements(model: nn.Module) -> Iterator[tuple[str, Any, str, Callable[..., Any]]]:
    """The name, the object, its attribute, and the kernel that may stand there."""
    sources = set()
    for name, module in model.named_modules():
        if kernel := _norm(module) or _gated(module):
            yield name, module, "forward", kernel
        sources.add(type(module).__module__)
    for source in sorted(sources):
        if rotate := _rotary(model, vars(sys.modules[source]).get("apply_rotary_pos_emb")):
            yield f"{source}.apply_rotary_pos_emb", sys.modules[source], "apply_rotary_pos_emb", rotate


def _norm(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    from harness.models.fused_gpu import LARGEST_NORM, rms_norm

    weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if eps is None or not isinstance(weight, Tensor) or weight.dim() != 1 or len(weight) > LARGEST_NORM:
        return None

    def forward(hidden: Tensor) -> Tensor:
        return rms_norm(hidden, weight, eps)

    return forward if _alike(module, forward, _sample(weight, 3, len(weight))) else None


def _gated(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    from harness.models.fused_gpu import silu_times

    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if not all(isinstance(part, nn.Linear) for part in parts) or not hasattr(module, "act_fn"):
        return None
    gate, up, down = parts

    def forward(hidden: Tensor) -> Tensor:
        assert gate is not None and up is not None and down is not None
        return down(silu_times(gate(hidden), up(hidden)))

    assert gate is not None
    return forward if _alike(module, forward, _sample(gate.weight, 3, gate.weight.shape[1])) else None


def _rotary(model: nn.Module, own: Callable[..., Any] | None) -> Callable[..., Any] | None:
    from harness.models.fused_gpu import rotate

    if own is None:
        return None
    like = next(model.parameters())
    states = _sample(like, 2, 5, 4, 16).transpose(1, 2)
    turns = _sample(like, 1, 5, 16)
    try:
        return rotate if _alike(own, rotate, states, states.flip(0), turns, turns.flip(1)) else None
    except (TypeError, ValueError, RuntimeError):  # of another signature
        return None


def _sample(like: Tensor, *shape: int) -> Tensor:
    generator = torch.Generator(device=like.device).manual_seed(0)
    return torch.randn(*shape, generator=generator, device=like.device).to(like.dtype)


def _alike(own: Callable[..., Any], kernel: Callable[..., Any], *given: Tensor) -> bool:
    ours, theirs = kernel(*given), own(*given)
    pairs = zip(ours, theirs, strict=True) if isinstance(theirs, tuple) else [(ours, theirs)]
    step = ROUNDINGS * torch.finfo(given[0].dtype).eps
    return all(torch.allclose(a.float(), b.float(), rtol=step, atol=step * float(b.abs().max())) for a, b in pairs)
