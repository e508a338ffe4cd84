"""Magnitude pruning, the baseline of every paper of the field."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from harness.catalogue import component
from harness.core.histogram import MagnitudeHistogram
from harness.core.interfaces import Pruned
from harness.core.pattern import Group, Pattern, keep
from harness.core.refit import refittable
from harness.core.statistic import ActivationStats


@component("method", "magnitude")
@dataclass(frozen=True)
@refittable
class Magnitude:
    """Han et al. 2015 (arXiv 1506.02626) as the Wanda and SparseGPT codes run it: |w|, compared over the matrix.

    The threshold is the ⌊n·s⌋-th smallest magnitude and goes too, as in those codes. Where points share a model, the
    order of a matrix is found once for all of them.
    """

    group: Group = "matrix"
    """The weights that are compared with one another."""

    statistic = None
    weight_statistic = MagnitudeHistogram

    def score(self, weight: Tensor, stats: ActivationStats) -> Tensor:
        """Scores to compare weights (O, I) by."""
        return weight.abs()

    def prune(self, weight: Tensor, stats: ActivationStats, pattern: Pattern) -> Pruned:
        known = stats.smallest if isinstance(stats, MagnitudeHistogram) else None
        kept = keep(self.score(weight, stats), pattern, self.group, quota="threshold", smallest=known)
        return Pruned(weight * kept, kept)
