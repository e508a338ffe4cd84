"""Putting the kernels of `fused_gpu.py` in the place of a model's own element-wise code, where both do the same.

What a module does is found out by running it: on random input the kernel's answer has to be the module's, up to one
rounding, or the module is left alone. Numbers move as far as a sum in another order moves them.

A kernel is a method of its module, which looks up its weights when it runs: they may come and go (`placement.py`), and
a copy of the model has kernels on its own weights. Where gradients are recorded the model's own code runs, since a
kernel has none.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from harness.models.decoder import Decoder
from harness.models.placement import placement_of

Replacement = tuple[str, Any, str, Callable[..., Any]]
"""A name, an object, its attribute, and what is to stand there."""
ROUNDINGS = 2
"""By how many units in the last place a kernel and the code it stands for may differ."""


@contextmanager
def fused(decoder: Decoder, *, wanted: bool = True) -> Iterator[list[str]]:
    """While inside, norms, rotary embeddings and gated activations of a model on a GPU run as one kernel each.

    A replica that is made inside has them too, and keeps them.

    Yields:
        the names of what was replaced.
    """
    with patched(_replacements(decoder) if wanted else ()) as names:
        yield names


@contextmanager
def patched(replacements: Iterable[Replacement]) -> Iterator[list[str]]:
    """While inside, attributes of objects are others, each found and set without gradients; at the end they are back.

    Yields:
        the names of what was replaced.
    """
    done: list[tuple[Any, str, Any]] = []
    names: list[str] = []
    try:
        with torch.no_grad():
            for name, owner, attribute, other in replacements:
                done.append((owner, attribute, vars(owner).get(attribute)))
                setattr(owner, attribute, other)
                names.append(name)
        yield names
    finally:
        for owner, attribute, before in reversed(done):
            if before is None:
                delattr(owner, attribute)
            else:
                setattr(owner, attribute, before)


def _replacements(decoder: Decoder) -> Iterator[Replacement]:
    """The kernels that may stand for the model's own code."""
    sources = set()
    for name, module in _modules(decoder):
        if "forward" not in vars(module) and (kernel := _norm(module) or _gated(module)):
            yield name, module, "forward", kernel
        sources.add(type(module).__module__)
    for source in sorted(sources):
        if rotate := _rotary(decoder.model, vars(sys.modules[source]).get("apply_rotary_pos_emb")):
            yield f"{source}.apply_rotary_pos_emb", sys.modules[source], "apply_rotary_pos_emb", rotate


def _modules(decoder: Decoder) -> Iterator[tuple[str, nn.Module]]:
    """Every module by its name, those of a block while its matrices are on the device."""
    placement, blocks = placement_of(decoder), decoder.modules
    inside = {id(module) for block in blocks for module in block.modules()}
    yield from ((name, module) for name, module in decoder.model.named_modules() if id(module) not in inside)
    for index in decoder.indices:
        with placement.on_device(decoder.block(index)):
            yield from decoder.block(index).named_modules(prefix=decoder.site(index))


def _norm(module: nn.Module) -> MethodType | None:
    from harness.models.fused_gpu import LARGEST_NORM, rms_norm

    weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if eps is None or not isinstance(weight, Tensor) or weight.dim() != 1 or len(weight) > LARGEST_NORM:
        return None

    def forward(self: Any, hidden: Tensor) -> Tensor:
        if recorded(hidden, self.weight):
            return type(self).forward(self, hidden)
        return rms_norm(hidden, self.weight, self.variance_epsilon)

    kernel = MethodType(forward, module)
    return kernel if _alike(module, kernel, _sample(weight, 3, len(weight))) else None


def _gated(module: nn.Module) -> MethodType | None:
    from harness.models.fused_gpu import silu_times

    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if not all(isinstance(part, nn.Linear) for part in parts) or not hasattr(module, "act_fn"):
        return None

    def forward(self: Any, hidden: Tensor) -> Tensor:
        if recorded(hidden, self.gate_proj.weight, self.up_proj.weight):
            return type(self).forward(self, hidden)
        return self.down_proj(silu_times(self.gate_proj(hidden), self.up_proj(hidden)))

    assert parts[0] is not None
    weight, kernel = parts[0].weight, MethodType(forward, module)
    return kernel if _alike(module, kernel, _sample(weight, 3, weight.shape[1])) else None


def _rotary(model: nn.Module, own: Callable[..., Any] | None) -> Callable[..., Any] | None:
    from harness.models.fused_gpu import rotate

    if own is None:
        return None

    def turn(*given: Any, **named: Any) -> Any:
        return (own if recorded(*given, *named.values()) else rotate)(*given, **named)

    like = next(model.parameters())
    states = _sample(like, 2, 5, 4, 16).transpose(1, 2)
    turns = _sample(like, 1, 5, 16)
    try:
        return turn if _alike(own, turn, states, states.flip(0), turns, turns.flip(1)) else None
    except (TypeError, ValueError, RuntimeError):  # of another signature
        return None


def recorded(*given: Any) -> bool:
    """Return whether gradients with respect to any of these will be asked for."""
    return torch.is_grad_enabled() and any(isinstance(one, Tensor) and one.requires_grad for one in given)


def _sample(like: Tensor, *shape: int) -> Tensor:
    generator = torch.Generator(device=like.device).manual_seed(0)
    return torch.randn(*shape, generator=generator, device=like.device).to(like.dtype)


def _alike(own: Callable[..., Any], kernel: Callable[..., Any], *given: Tensor) -> bool:
    ours, theirs = kernel(*given), own(*given)
    pairs = zip(ours, theirs, strict=True) if isinstance(theirs, tuple) else [(ours, theirs)]
    step = ROUNDINGS * torch.finfo(given[0].dtype).eps
    return all(torch.allclose(a.float(), b.float(), rtol=step, atol=step * float(b.abs().max())) for a, b in pairs)
