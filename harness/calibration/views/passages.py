"""Hidden states in front of blocks and sub-layers and behind them, window by window.

Shapes: B windows of a batch, L tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from harness.calibration.walk.stream import Stream
from harness.core.interfaces import Passage
from harness.core.structure import Cut, Unit
from harness.models.decoder import Decoder
from harness.models.gates import gated
from harness.runtime.progress import progress


@torch.no_grad()
def passages(
    decoder: Decoder, batches: Sequence[Tensor], scope: Sequence[int], *, sublayers: bool, parallel: bool
) -> Iterator[Passage]:
    """The passages through the blocks of a scope, or through their sub-layers, over batches (B, L).

    The state behind attention is what the block gives without its feed-forward part. In a parallel block both parts
    read, and are added to, what is in front of the block.
    """
    stream = Stream(decoder, batches)
    try:
        for index in progress(decoder.until(scope), "hidden states"):
            with stream.placement.on_device(decoder.block(index)):
                for position, tokens in enumerate(stream.batches):
                    before = stream.hidden[position]
                    behind = _run(stream, index, before, tokens)
                    if index in scope and sublayers:
                        yield from _through_sublayers(stream, index, before, behind, tokens, parallel)
                    elif index in scope:
                        yield _passage(Unit("block", index), before, behind)
                    stream.hidden[position] = behind
    finally:
        stream.placement.settle()


def _through_sublayers(
    stream: Stream, index: int, before: Tensor, behind: Tensor, tokens: Tensor, parallel: bool
) -> Iterator[Passage]:
    attention, mlp = Unit("attention", index), Unit("mlp", index)
    middle = _run(stream, index, before, tokens, mlp)
    yield _passage(attention, before, middle)
    yield (
        _passage(mlp, before, _run(stream, index, before, tokens, attention))
        if parallel
        else _passage(mlp, middle, behind)
    )


def _run(stream: Stream, index: int, before: Tensor, tokens: Tensor, *without: Unit) -> Tensor:
    """Output (B, L, D) of a block without some of its units."""
    with gated(stream.decoder, Cut(frozenset(without))):
        return stream.with_oom_backoff(partial(stream.run_block, index, before, tokens))


def _passage(unit: Unit, before: Tensor, behind: Tensor) -> Passage:
    return Passage(unit, before.float(), behind.float())
