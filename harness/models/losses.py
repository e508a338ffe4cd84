"""Losses of next tokens, from logits or from last hidden states whose logits are never all there at once.

Shapes: B windows, b of them at once, L tokens, p positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

Head = Callable[[Tensor], Tensor]
"""Hidden states (b, p, D) behind the last block → logits (b, p, V); it treats each position alone."""


def next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean negative log-likelihood () of the L − 1 targets of tokens (B, L), in nats, from logits (B, L, V)."""
    return _cross_entropy(_in_float32(logits[:, :-1]), tokens[:, 1:], "mean")


def next_token_losses(head: Head, hidden: Tensor, tokens: Tensor, at_once: int) -> Iterator[tuple[slice, Tensor]]:
    """Negative log-likelihoods (b, p) of all targets of tokens (B, L), in nats, from last hidden states (B, L, D).

    Args:
        at_once: as in `logits_in_pieces`.

    Yields:
        Some windows, and the losses of all their targets or, where a window goes in parts, of those that come next.
    """
    for piece in logits_in_pieces(head, hidden, at_once):
        targets = tokens[piece.windows, piece.positions.start + 1 : piece.positions.stop + 1]
        yield piece.windows, _cross_entropy(piece.logits, targets, "none").view(targets.shape)


def window_losses(head: Head, hidden: Tensor, tokens: Tensor, at_once: int) -> Tensor:
    """Mean (B,) of the same over the targets of each window, summed in float64."""
    sums = torch.zeros(len(hidden), dtype=torch.float64, device=hidden.device)
    for windows, losses in next_token_losses(head, hidden, tokens, at_once):
        sums[windows] += losses.sum(dim=1, dtype=torch.float64)
    return sums / (hidden.shape[1] - 1)


class Piece(NamedTuple):
    """The logits (b, p, V) of some positions of some windows, in float32 at least."""

    windows: slice
    positions: slice
    logits: Tensor


def logits_in_pieces(head: Head, hidden: Tensor, at_once: int) -> Iterator[Piece]:
    """The logits of the L − 1 positions that have a target, from last hidden states (B, L, D), in order.

    Args:
        at_once: positions that go through the head together: as many whole windows, or a part of one at a time.
    """
    length = hidden.shape[1]
    together, size = max(1, at_once // length), min(max(1, at_once), length)
    for first in range(0, len(hidden), together):
        windows = slice(first, min(first + together, len(hidden)))
        for start in range(0, length - 1, size):
            positions = slice(start, min(start + size, length - 1))
            logits = head(hidden[windows, start : start + size])[:, : positions.stop - start]
            yield Piece(windows, positions, _in_float32(logits))


def _in_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _cross_entropy(logits: Tensor, targets: Tensor, reduction: str) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)
