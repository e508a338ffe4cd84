"""Plain attention on a CPU, a window and some of its rows at a time: scores that stay in the cache, and the same bits.

All scores of a batch are new memory from the system for every step of every block: at 2048 tokens a block takes half as
long again, or twice (`benchmarks/README.md`). What runs on the pieces is the model's own `eager_attention_forward`,
whose rows do not depend on each other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from harness.models.fused import Replacement, patched, recorded

SCORE_BYTES = 1 << 22
"""Scores of one piece take about so much memory."""
ROWS = (32, 256)
"""Fewest and most rows of a piece."""
NAME = "eager_attention_forward"
Attention = Callable[..., tuple[Tensor, Any]]


@contextmanager
def in_pieces(model: nn.Module) -> Iterator[list[str]]:
    """While inside, plain attention of a model on a CPU runs in pieces, where that gives the same bits.

    Yields:
        the modules of transformers in which it does.
    """
    with patched(_replacements(model)) as names:
        yield names


def _replacements(model: nn.Module) -> Iterator[Replacement]:
    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        return
    for source in sorted({type(module).__module__ for module in model.modules()}):
        own = vars(sys.modules[source]).get(NAME)
        if own is not None and _same_bits(own):
            yield source, sys.modules[source], NAME, pieced(own)


def pieced(own: Attention) -> Attention:
    """The attention on a window and some rows at a time.

    Shapes of what it is given: query (B, H, L, D), key and value (B, H/g, K, D), the mask (B or 1, H or 1, L, K) or
    None; it gives (B, L, H, D), and no probabilities.
    """

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *given: Any, **named: Any
    ) -> tuple[Tensor, Any]:
        if recorded(query, key, value) or query.device.type != "cpu":
            return own(module, query, key, value, attention_mask, *given, **named)
        groups = query.shape[1] // key.shape[1]
        key, value = (one.repeat_interleave(groups, dim=1) if groups > 1 else one for one in (key, value))
        (batch, heads, length, _), keys = query.shape, key.shape[2]
        output, ungrouped = query.new_empty(batch, length, heads, value.shape[3]), _Ungrouped(module)
        for window in range(batch):
            here = slice(window, window + 1)
            mask = _part(attention_mask, 0, here)
            for rows in _strips(length, 4 * heads * keys):
                part = _part(mask, 2, rows)
                strip, _ = own(ungrouped, query[here, :, rows], key[here], value[here], part, *given, **named)
                output[here, rows] = strip
        return output, None

    return attend


def _strips(length: int, row_bytes: int) -> Iterator[slice]:
    fewest, most = ROWS
    rows = min(max(SCORE_BYTES // row_bytes // fewest * fewest, fewest), most)
    return (slice(start, min(start + rows, length)) for start in range(0, length, rows))


def _part(mask: Tensor | None, dim: int, part: slice) -> Tensor | None:
    """The part of a mask, which may be one for all."""
    if mask is None or mask.shape[dim] == 1:
        return mask
    return mask[(slice(None),) * dim + (part,)]


class _Ungrouped:
    """An attention module whose keys and values have been repeated already."""

    num_key_value_groups = 1

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@cache
@torch.no_grad()
def _same_bits(own: Attention) -> bool:
    """Return whether pieces give the same on random numbers, of a length at which one is a part of a window."""
    length, heads, width = 384, 8, 64
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, length, heads, width, generator=generator).transpose(1, 2) for _ in range(3))
    mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]
    module = SimpleNamespace(num_key_value_groups=1, training=False, head_dim=width)
    given = (query, key, value, mask)
    try:
        theirs, _ = own(module, *given, scaling=width**-0.5, dropout=0.0)
        mine, _ = pieced(own)(module, *given, scaling=width**-0.5, dropout=0.0)
    except (AttributeError, TypeError, ValueError, RuntimeError):  # of another signature
        return False
    return torch.equal(mine, theirs)
