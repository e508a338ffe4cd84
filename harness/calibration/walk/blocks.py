"""The walk over a decoder's blocks, on all of its devices: every block sees the earlier ones as they are by then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from harness.calibration.walk.devices import ReplicatedBlock, in_turn, over_devices
from harness.calibration.walk.stream import Stream, StreamedBlock, _Unseen
from harness.models.decoder import Decoder
from harness.models.placement import placement_of
from harness.runtime.progress import progress


def stream(
    decoder: Decoder, batches: Sequence[Tensor], scope: Sequence[int], *, edited: bool, label: str,
    exact: bool = False, resume_at: tuple[int, Sequence[Tensor]] | None = None,
) -> Iterator[StreamedBlock | ReplicatedBlock]:  # fmt: skip
    """The blocks of `scope` in order, each seeing the earlier ones as they are when it is reached.

    Without batches (nothing is observed) no forward runs. `edited` says whether blocks will be rewritten; if not, the
    outputs of the observing pass are the next block's inputs and no second pass runs. `exact` sums statistics in the
    order of the released codes. `resume_at` is the block to begin with and the hidden states in front of it, on a model
    that has one device.
    """
    if not batches:
        yield from _unseen(decoder, scope, label)
        return
    walk = Walk(decoder, batches, exact=exact)
    begin = walk.begin_at(*resume_at) if resume_at else 0
    try:
        for index in progress(decoder.until(scope, begin), label):
            with walk.block(index, needs_outputs=not edited) as block:
                if index in scope:
                    yield block
                if index != scope[-1]:
                    block.advance()
    finally:  # also where the walk is left in between
        walk.settle()


class Walk:
    """The streams of all devices that a model may use, and its blocks in front of them."""

    def __init__(self, decoder: Decoder, batches: Sequence[Tensor], *, exact: bool = False) -> None:
        self.streams = [Stream(one, share, exact=exact) for one, share in over_devices(decoder, batches)]

    def begin_at(self, index: int, hidden: Sequence[Tensor]) -> int:
        """Go on with a later block, for which these are the hidden states (B, L, D) of the batches."""
        (only,) = self.streams
        only.hidden = only.placement.offloadable(hidden)
        return index

    @contextmanager
    def block(self, index: int, *, needs_outputs: bool) -> Iterator[StreamedBlock | ReplicatedBlock]:
        """One block, on its devices for as long as this lasts."""
        with in_turn(self.streams, index):
            parts = [StreamedBlock(stream, index, needs_outputs) for stream in self.streams]
            yield parts[0] if len(parts) == 1 else ReplicatedBlock(parts)

    def settle(self) -> None:
        """The weights are where the model keeps them, for anybody to read and write."""
        self.streams[0].placement.settle()


def _unseen(decoder: Decoder, scope: Sequence[int], label: str) -> Iterator[StreamedBlock]:
    placement = placement_of(decoder)
    try:
        for index in progress(scope, label):
            with placement.on_device(decoder.block(index)):
                yield _Unseen(decoder, index)
    finally:
        placement.settle()
