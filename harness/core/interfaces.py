"""The protocols that components follow; structural typing, no base classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from harness.core.allocation import Allocation, Budget
from harness.core.edit import Edit
from harness.core.pattern import Pattern
from harness.core.statistic import Seen, Statistic

Site = str
"""The full name of one weight matrix, such as `model.layers.0.mlp.up_proj`."""


class Pruned(NamedTuple):
    """A pruned weight (O, I), what was kept, and a remark for the record (a raised damping, a fallback)."""

    weight: Tensor
    kept: Tensor
    note: str = ""


class FeedForward(NamedTuple):
    """The part of a block behind attention: down(φ(gate x) ⊙ up x) if `gated`, else down(φ(up x)).

    `readers` are the matrices that read x: gate and up, one matrix with the rows of gate over those of up, or up alone.
    `biases` holds the bias (O,) of each linear that has one.
    """

    readers: tuple[Site, ...]
    down: Site
    gated: bool
    activation: Callable[[Tensor], Tensor]
    biases: Mapping[Site, Tensor]

    @property
    def sites(self) -> tuple[Site, ...]:
        """Its matrices, as the block runs them."""
        return (*self.readers, self.down)


class BlockView(Protocol):
    """One block under calibration: its weights, and what its linears see with all earlier blocks as they are now.

    `observe` takes one statistic for all linears, or one for each of some; linears that read the same input share it.
    `tell` puts facts about the pruning of this block (a loss per epoch, a fallback) into the record.
    """

    index: int

    @property
    def weights(self) -> Mapping[Site, Tensor]: ...

    @property
    def feed_forward(self) -> FeedForward: ...

    def observe(self, statistic: Statistic | Mapping[Site, Statistic]) -> Mapping[Site, Seen]: ...

    def tell(self, **facts: Any) -> None: ...


class Probe(Protocol):
    """Read-only questions to the model: sizes, weights, statistics of the inputs; all as it is now."""

    @property
    def shapes(self) -> Mapping[Site, tuple[int, int]]: ...

    @property
    def blocks(self) -> tuple[tuple[Site, ...], ...]: ...

    def observe(self, statistic: Statistic) -> Iterator[BlockView]: ...


@runtime_checkable
class LinearMethod(Protocol):
    """Weight and what was seen → pruned weight. May say why it cannot with `refuses(pattern, shape) -> str | None`."""

    @property
    def statistic(self) -> Statistic | None: ...

    def prune(self, weight: Tensor, seen: Seen, pattern: Pattern) -> Pruned: ...


@runtime_checkable
class BlockMethod(Protocol):
    """Prunes a whole block; a LinearMethod is lifted to one that treats each linear alone."""

    def prune_block(self, block: BlockView, patterns: Mapping[Site, Pattern]) -> Mapping[Site, Pruned]: ...


@runtime_checkable
class Allocator(Protocol):
    """How much to remove where: site → pattern, with the budget as parameter-weighted mean."""

    def allocate(self, probe: Probe, budget: Budget) -> Allocation: ...


@runtime_checkable
class Planner(Protocol):
    """Which structures go (depth, width, experts), as data."""

    def plan(self, probe: Probe) -> Edit: ...


@runtime_checkable
class Recovery(Protocol):
    """How a pruned model is healed: changes `model` in place, and leaves the zeros outside `kept` (O, I) alone."""

    def heal(self, model: nn.Module, tokenizer: Any, kept: Mapping[Site, Tensor], generator: Random) -> None: ...
