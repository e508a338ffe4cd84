"""A method from outside the repository: `plugins=tests/conformance/plugin_method.py method=plugged`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from harness.catalogue import component
from harness.core.interfaces import Pruned
from harness.core.pattern import Pattern, keep


@component("method", "plugged")
@dataclass(frozen=True)
class Plugged:
    """Magnitude of each weight against the mean of its column, compared per output."""

    power: float = 1.0

    statistic = None

    def prune(self, weight: Tensor, stats: Tensor | None, pattern: Pattern) -> Pruned:
        magnitude = weight.float().abs()
        kept = keep(magnitude / magnitude.mean(dim=0) ** self.power, pattern)
        return Pruned(weight * kept, kept)
