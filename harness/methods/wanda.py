"""Wanda: weights and activations."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from harness.catalogue import component
from harness.core.interfaces import Pruned
from harness.core.pattern import Group, Pattern, keep
from harness.core.refit import refittable
from harness.core.statistic import ActivationStats, squared_norms


@component("method", "wanda")
@dataclass(frozen=True)
@refittable
class Wanda:
    """Sun et al. 2024 (arXiv 2306.11695), eq. 1: weight magnitude times input norm, compared per output."""

    group: Group = "row"
    """The weights that are compared with one another."""

    statistic = squared_norms
    revision = 2  # 1: a plain sum of squares, whose rounding swapped one near tie at 90 %

    def score(self, weight: Tensor, stats: ActivationStats) -> Tensor:
        """Scores to compare weights (O, I) by."""
        return weight.abs() * stats.mean_sq.sqrt()

    def prune(self, weight: Tensor, stats: ActivationStats, pattern: Pattern) -> Pruned:
        kept = keep(self.score(weight, stats), pattern, self.group)
        return Pruned(weight * kept, kept)
