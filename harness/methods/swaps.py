"""SparseSwaps: a mask refined by exchanges that lower the squared error of the outputs.

Shapes: O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from harness.catalogue import component
from harness.core.costs import Cost, Work, largest, observing
from harness.core.geometry import Geometry
from harness.core.interfaces import GroupedMethod, LinearMethod, Pruned
from harness.core.pattern import NofM, Pattern
from harness.core.statistic import ActivationStats, Gram, Statistic, gram, together
from harness.core.swaps import swapped, working_bytes
from harness.methods.wanda import Wanda
from harness.runtime.errors import UserError


@component("method", "swaps")
@dataclass(frozen=True)
class Swaps:
    """Zimmer et al. 2025 (arXiv 2512.10922), from its objective, on the mask of `inner`: weights stay what they are.

    In every row the pruned and the kept weight whose exchange lowers ‖(W − Ŵ) X‖² most change places, for N:M within
    their group, so each row keeps the number of zeros that the inner mask has. Candidates are the `shortlist` best of
    each side by the terms of their own (for N:M the groups), 0 takes all; `rounds` times they are chosen anew, and up
    to `exchanges` made between. `exchanges=1` and `shortlist=0` are the steepest descent. The error of a matrix never
    rises; whatever an inner method did to the weights themselves is dropped.
    """

    inner: Any = field(default_factory=Wanda, metadata={"component": "method"})
    """The method whose mask is improved."""
    rounds: int = 4
    """Times that candidates are chosen anew."""
    exchanges: int = 32
    """Exchanges in a row between two choices, at most."""
    shortlist: int = 64
    """Candidates of each side; 0: all."""

    def __post_init__(self) -> None:
        if self.rounds < 0 or self.exchanges < 1 or self.shortlist < 0:
            raise UserError("method.rounds and method.shortlist have to be at least 0 and method.exchanges at least 1.")
        if not isinstance(self.inner, LinearMethod):
            raise UserError("method.inner has to prune one matrix at a time, not a whole block; take another one.")

    @property
    def statistic(self) -> Statistic:
        inner = self.inner.statistic
        return gram if inner in (None, gram) else _seeing(inner)

    def cost(self, geometry: Geometry, work: Work) -> Cost:
        """Gram matrices, the rows at once with their pairs and what is computed from both, and the inner method's."""
        inner, stats = self.inner.cost(geometry, work), observing(self.statistic, geometry, work)
        rows = largest(geometry, lambda out, into: working_bytes(out, into, self.shortlist, cuda=work.cuda))
        whole = replace(
            stats,
            factor_bytes=max(stats.factor_bytes, inner.factor_bytes),
            working_bytes=max(inner.working_bytes, rows),
        )
        return whole + inner.arithmetic()

    def refuses(self, pattern: Pattern, shape: tuple[int, int]) -> str | None:
        return self.inner.refuses(pattern, shape)

    @torch.no_grad()
    def prepare(self, stats: Gram | Mapping[str, ActivationStats]) -> None:
        if isinstance(self.inner, GroupedMethod):
            self.inner.prepare(self._parts(stats)[0])

    @torch.no_grad()
    def prune(self, weight: Tensor, stats: Gram | Mapping[str, ActivationStats], pattern: Pattern) -> Pruned:
        inner, matrix = self._parts(stats)
        (pruned,) = self._refined([weight], matrix, [pattern], [self.inner.prune(weight, inner, pattern)])
        return pruned

    @torch.no_grad()
    def prune_together(
        self, weights: Sequence[Tensor], stats: Gram | Mapping[str, ActivationStats], patterns: Sequence[Pattern]
    ) -> list[Pruned]:
        inner, matrix = self._parts(stats)
        if isinstance(self.inner, GroupedMethod):
            first = self.inner.prune_together(weights, inner, patterns)
        else:
            first = [self.inner.prune(weight, inner, each) for weight, each in zip(weights, patterns, strict=True)]
        return self._refined(weights, matrix, patterns, first)

    def _parts(self, stats: Gram | Mapping[str, ActivationStats]) -> tuple[ActivationStats, Tensor]:
        """Statistics of the inner method, and the Gram matrix (I, I)."""
        if isinstance(stats, Gram):
            return stats if self.inner.statistic is gram else None, stats.matrix
        return stats["inner"], stats["gram"].matrix

    def _refined(
        self, weights: Sequence[Tensor], matrix: Tensor, patterns: Sequence[Pattern], first: Sequence[Pruned]
    ) -> list[Pruned]:
        """Matrices of one pattern in one go, one above the other, unless they are permuted."""
        refined = [start.kept for start in first]
        batches: dict[object, list[int]] = {}
        for place, (pattern, start) in enumerate(zip(patterns, first, strict=True)):
            if 0 < pattern.sparsity < 1:
                key = ("alone", place) if start.order is not None else _group_of(pattern)
                batches.setdefault(key, []).append(place)
        for places in batches.values():
            rows = torch.cat([weights[place] for place in places]) if len(places) > 1 else weights[places[0]]
            kept = torch.cat([refined[place] for place in places])
            swapped_rows = self._swapped(rows, kept, first[places[0]].order, matrix, patterns[places[0]])
            for place, part in zip(places, swapped_rows.split([len(weights[place]) for place in places]), strict=True):
                refined[place] = part
        results = zip(weights, refined, first, strict=True)
        return [start._replace(weight=weight * kept, kept=kept) for weight, kept, start in results]

    def _swapped(self, weight: Tensor, kept: Tensor, order: Tensor | None, matrix: Tensor, pattern: Pattern) -> Tensor:
        """The mask (O, I); a permuted pattern is exchanged within its own groups."""
        settings = {"rounds": self.rounds, "swaps": self.exchanges, "shortlist": self.shortlist}
        if order is None:
            return swapped(weight, kept, matrix, pattern, **settings)
        refined = torch.empty_like(kept)
        refined[:, order] = swapped(weight[:, order], kept[:, order], matrix[order][:, order], pattern, **settings)
        return refined


def _group_of(pattern: Pattern) -> int:
    """The kind of exchange within rows: the size of the groups, 0 without; the counts are those of the mask."""
    return pattern.of if isinstance(pattern, NofM) else 0


@lru_cache
def _seeing(inner: Statistic) -> Statistic:
    """One object for each inner statistic: what is asked for twice is one statistic."""
    return together({"inner": inner, "gram": gram})
