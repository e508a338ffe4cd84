"""States of a walk over pruned blocks, kept so that the next one begins where it first differs from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from harness.core.interfaces import Site
from harness.core.pattern import Pattern
from harness.runtime.memory import OffloadableTensors


@dataclass(frozen=True)
class _Step:
    """A block of the last walk: its patterns, and the hidden states (B, L, D) in front of it if they are kept."""

    index: int
    patterns: Mapping[Site, Pattern]
    hidden: Sequence[Tensor] | None
    size: int


class PrefixCache:
    """The blocks of the last walk, in order.

    Args:
        limit: bytes that hidden states may take; a walk can begin at the blocks for which they are kept.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._steps: list[_Step] = []

    def resume_at(self, patterns: Sequence[Mapping[Site, Pattern]]) -> tuple[int, Sequence[Tensor]] | None:
        """Where a walk with these patterns may begin, and the hidden states there; None: the model's first.

        What lies behind is forgotten: the new walk leaves its own.
        """
        pairs = zip(self._steps, patterns, strict=False)
        same = next((number for number, (step, asked) in enumerate(pairs) if step.patterns != asked), len(self._steps))
        for number in range(min(same, len(self._steps) - 1), -1, -1):
            if (hidden := self._steps[number].hidden) is not None:
                index = self._steps[number].index
                del self._steps[number:]
                return index, hidden
        self._steps = []
        return None

    def add(self, index: int, patterns: Mapping[Site, Pattern], hidden: OffloadableTensors) -> None:
        """Remember a block before the walk goes on behind it."""
        kept = None if hidden.waiting else list(hidden)
        size = sum(tensor.nbytes for tensor in kept or ())
        if size + sum(step.size for step in self._steps) > self.limit:
            kept, size = None, 0
        self._steps.append(_Step(index, dict(patterns), kept, size))
