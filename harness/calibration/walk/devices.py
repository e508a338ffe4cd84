"""Windows shared out over the devices of one host: each runs its share through a replica of the current block.

What the devices saw is merged on the first, which prunes; the others then take its weights over. Sums over windows may
differ from those of one device in their last digit, as they are added in another order; a fixed one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor

from harness.calibration.walk.stream import Stream, StreamedBlock
from harness.core.interfaces import FeedForward
from harness.core.statistic import ActivationStats, Statistic
from harness.models.decoder import Decoder
from harness.models.placement import placement_of

T = TypeVar("T")
U = TypeVar("U")


def over_devices(decoder: Decoder, batches: Sequence[Tensor]) -> list[tuple[Decoder, Sequence[Tensor]]]:
    """The model with its batches, and a replica on each further device with its own, all in order."""
    models = [decoder, *placement_of(decoder).replicas(decoder, len(batches) - 1)]
    ends = [len(batches) * (number + 1) // len(models) for number in range(len(models))]
    starts = [0, *ends[:-1]]
    return [(one, batches[start:end]) for one, start, end in zip(models, starts, ends, strict=True)]


def each(work: Callable[[T], U], items: Sequence[T]) -> list[U]:
    """The results of the work on each device's share, all at the same time, without gradients."""

    def quietly(item: T) -> U:
        with torch.no_grad():  # a thread records gradients even where the caller does not
            return work(item)

    if len(items) == 1:
        return [quietly(items[0])]
    with ThreadPoolExecutor(len(items)) as pool:
        return list(pool.map(quietly, items))


@contextmanager
def in_turn(streams: Sequence[Stream], index: int) -> Iterator[None]:
    """A block on all devices, the model's own first: the others copy it from there."""
    with ExitStack() as stack:
        for stream in streams:
            stack.enter_context(stream.placement.on_device(stream.decoder.block(index)))
        yield


class ReplicatedBlock:
    """One block on several devices: a `BlockView` over the parts of each."""

    def __init__(self, parts: Sequence[StreamedBlock]) -> None:
        self._first, self._parts = parts[0], parts
        self.index, self.diagnostics = self._first.index, self._first.diagnostics
        self.log = self._first.log

    @property
    def weights(self) -> Mapping[str, Tensor]:
        return self._first.weights

    @property
    def feed_forward(self) -> FeedForward:
        return self._first.feed_forward

    def write(self, site: str, weight: Tensor) -> None:
        """Put a new weight (O, I) in place on the first device; the others have it when they advance."""
        self._first.write(site, weight)

    def observe(self, statistic: Statistic | Mapping[str, Statistic]) -> dict[str, ActivationStats]:
        """The statistic over the windows of all devices, merged on the first."""
        wanted = statistic if isinstance(statistic, Mapping) else dict.fromkeys(self.weights, statistic)
        if not all(one.merge for one in wanted.values()):
            return self._observe_alone(statistic)
        stats = each(lambda part: part.observe(statistic), self._parts)
        merged: dict[int, ActivationStats] = {}  # sites with a common input share one state
        for site, state in stats[0].items():
            if id(state) not in merged:
                merge = wanted[site].merge
                assert merge is not None
                merged[id(state)] = merge([one[site] for one in stats])
        return {site: merged[id(state)] for site, state in stats[0].items()}

    def _observe_alone(self, statistic: Statistic | Mapping[str, Statistic]) -> dict[str, ActivationStats]:
        """All windows through the first device, where there is no way to merge what several saw."""
        streams = [part.stream for part in self._parts]
        whole = copy.copy(streams[0])
        device = streams[0].placement.device
        whole.batches = [batch.to(device) for stream in streams for batch in stream.batches]
        whole.follows_tokens = any(stream.follows_tokens for stream in streams)
        whole.learn(whole.batches)
        whole.hidden = _Elsewhere(streams)  # type: ignore[assignment]
        return type(self._first)(whole, self.index, needs_outputs=False).observe(statistic)

    def advance(self) -> None:
        """Move all devices' hidden states behind this block, as its weights are now."""
        if self._first.written:
            for part in self._parts[1:]:
                part.renew()
        each(lambda part: part.advance(), self._parts)


class _Elsewhere:
    """The hidden states of several devices, brought to the first when they are asked for."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        self._streams = streams

    def __iter__(self) -> Iterator[Tensor]:
        device = self._streams[0].placement.device
        return (hidden.to(device) for hidden in chain.from_iterable(stream.hidden for stream in self._streams))

    def __len__(self) -> int:
        return sum(len(stream.hidden) for stream in self._streams)
