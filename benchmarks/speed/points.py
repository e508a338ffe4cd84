"""The points of the sweep whose time is taken, and what a side of the comparison gave for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

SPARSITIES = (0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8)
METHODS = ("magnitude", "wanda", "sparsegpt")
ALLOCATORS = ("uniform", "owl", "alphapruning")


class Point(NamedTuple):
    """One pruned model of the sweep."""

    sparsity: float
    method: str
    allocator: str

    @property
    def overrides(self) -> list[str]:
        """Its overrides."""
        return [f"sparsity={self.sparsity}", f"method={self.method}", f"allocator={self.allocator}"]

    @property
    def name(self) -> str:
        """Its key in a side."""
        return " ".join(self.overrides)


class Given(NamedTuple):
    """Results of one point: perplexities, the fraction of zeros, seconds from its start to its end."""

    values: list[float]
    achieved: float
    seconds: float


@dataclass(frozen=True)
class Side:
    """Seconds of all points by the clock and of the processor, what each gave, what was counted, stages.

    `once` are seconds, by the clock and of the processor, that points measured alone contain but a whole sweep would
    not repeat at every sparsity.
    """

    seconds: float = 0.0
    processor: float = 0.0
    points: dict[str, Given] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    stages: Counter[str] = field(default_factory=Counter)
    once: tuple[float, float] = (0.0, 0.0)

    def plus(self, other: Side) -> Side:
        """Both together."""
        return Side(
            self.seconds + other.seconds,
            self.processor + other.processor,
            {**self.points, **other.points},
            self.counts + other.counts,
            self.stages + other.stages,
            (self.once[0] + other.once[0], self.once[1] + other.once[1]),
        )

    def counted_up(self, share: float) -> tuple[float, float]:
        """Seconds of all points, by the clock and of the processor, where these are one in `share`."""
        clock, processor = self.once
        return (self.seconds - clock) * share + clock, (self.processor - processor) * share + processor

    @property
    def plain(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {**vars(self), "points": {name: given._asdict() for name, given in self.points.items()}}


def points(sparsities: Sequence[float]) -> list[Point]:
    """Every point at these sparsities, sparsity outermost."""
    return [
        Point(sparsity, method, allocator) for sparsity in sparsities for method in METHODS for allocator in ALLOCATORS
    ]
