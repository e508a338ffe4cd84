"""DSnoT: a mask made anew by growing and pruning weights until the expected output of each row is right.

Shapes: O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from harness.catalogue import component
from harness.core.exchange import Candidates, Groups, exchange, in_rows
from harness.core.interfaces import LinearMethod, Pruned
from harness.core.moments import moments
from harness.core.pattern import NofM, Pattern, keep
from harness.core.statistic import ActivationStats, Statistic, squared_norms, together
from harness.methods.wanda import Wanda
from harness.runtime.errors import UserError


@component("method", "dsnot")
@dataclass(frozen=True)
class DSnoT:
    """Zhang et al. 2024 (arXiv 2310.08915), algorithm 1, on the mask of `inner`; the weights stay what they are.

    The error of a row is Σ w x̄ over its pruned weights, x̄ the mean over windows of an input's sum. A cycle brings back
    the pruned weight of the error's sign with the largest |w x̄| / v^`variance_power` (v the variance of the input) and
    prunes, of the kept weights that move the error the same way, the one with the least Wanda score; for N:M the one
    with the least score in the group that grew. A row ends when its |error| is at most `update_threshold`, after
    `max_cycles`, or with its candidates. `same_sign` ends it before its error changes its sign too; null is the
    released code (zyxxmu/DSnoT, 4c029df): for N:M only. Its threshold is absolute, made for windows of 2048 tokens.

    An inner method that scores (magnitude, wanda, ria) is compared by row, as there; of others the mask is taken.
    `skip=mlp` leaves the feed-forward part with the inner mask, as the released settings do. `variant=released` has
    that code's accidents as well: a row that has run out of candidates of one sign goes on with those of the other, the
    largest scores first, then takes kept weights for pruned ones, so that the number of zeros can drift; and inputs
    that were never seen are grown first.
    """

    inner: Any = field(default_factory=Wanda, metadata={"component": "method"})
    """The method whose mask is refined."""
    max_cycles: int = 50
    """Exchanges of a row at most."""
    update_threshold: float = 0.1
    """The |error| of a row at which it ends."""
    variance_power: float = 1.0
    """The power of the input's variance that growth is divided by."""
    same_sign: bool | None = None
    """End a row before its error changes sign; null: for N:M only."""
    skip: Literal["none", "mlp", "attention"] = "mlp"
    """The part of a block that keeps the inner mask."""
    variant: Literal["default", "released"] = "default"
    """`released`: what the authors' code does where it differs."""

    def __post_init__(self) -> None:
        if self.max_cycles < 0 or self.update_threshold < 0 or self.variance_power < 0:
            raise UserError(
                "method.max_cycles, method.update_threshold and method.variance_power have to be at least 0."
            )
        if not isinstance(self.inner, LinearMethod):
            raise UserError(
                "method.inner has to prune one matrix at a time, as magnitude, wanda, ria and sparsegpt do."
            )

    @property
    def statistic(self) -> Statistic:
        return _seeing(self.inner.statistic)

    @property
    def sees_gram(self) -> bool:
        """True if there are Gram matrices: none of its own."""
        return self.inner.statistic not in (None, squared_norms) and getattr(self.inner, "sees_gram", True)

    def working_bytes(self, outputs: int, inputs: int, *, cuda: bool) -> int:
        """Four orders of the matrix in 64 bits, and about six matrices as large in float32."""
        inner = getattr(self.inner, "working_bytes", lambda *shape, cuda: 0)(outputs, inputs, cuda=cuda)
        return max(inner, (4 * 8 + 6 * 4) * outputs * inputs)

    def refuses(self, pattern: Pattern, shape: tuple[int, int]) -> str | None:
        refuses = getattr(self.inner, "refuses", None)
        return refuses(pattern, shape) if refuses else None

    def for_part(self, part: Literal["attention", "mlp"]) -> DSnoT:
        """The method for the matrices of one part of a block."""
        return replace(self, max_cycles=0) if part == self.skip else self

    @torch.no_grad()
    def prune(self, weight: Tensor, stats: Mapping[str, ActivationStats], pattern: Pattern) -> Pruned:
        start = self._start(weight, stats.get("inner"), pattern)
        kept = self._refined(weight.float(), stats, pattern, start) if self.max_cycles else start.kept
        return start._replace(weight=weight * kept, kept=kept)

    def _start(self, weight: Tensor, stats: ActivationStats, pattern: Pattern) -> Pruned:
        if isinstance(pattern, NofM) or not hasattr(self.inner, "score"):
            return self.inner.prune(weight, stats, pattern)
        return Pruned(weight, keep(self.inner.score(weight, stats), pattern))

    def _refined(self, weight: Tensor, stats: Mapping[str, ActivationStats], pattern: Pattern, start: Pruned) -> Tensor:
        """The mask (O, I) after the cycles; a permuted pattern is looked at in its own order."""
        order = start.order if start.order is not None else torch.arange(weight.shape[1], device=weight.device)
        kept = start.kept[:, order]
        expected = (weight * stats["moments"].total)[:, order]
        growth = torch.where(kept, 0, expected)
        error = growth.sum(dim=1, keepdim=True)
        if self.variance_power:
            growth = growth / stats["moments"].variance[order] ** self.variance_power
        refined = torch.empty_like(kept)
        refined[:, order] = exchange(
            kept, expected, growth, error, self._going(weight, stats, pattern, order, kept, expected),
            cycles=self.max_cycles, threshold=self.update_threshold, released=self.variant == "released",
            same_sign=isinstance(pattern, NofM) if self.same_sign is None else self.same_sign,
        )  # fmt: skip
        return refined

    def _going(
        self,
        weight: Tensor,
        stats: Mapping[str, ActivationStats],
        pattern: Pattern,
        order: Tensor,
        kept: Tensor,
        expected: Tensor,
    ) -> Candidates:
        """Candidates to go: for N:M by the score of the inner method, where it has one, otherwise by Wanda's."""
        inner = getattr(self.inner, "score", None) if isinstance(pattern, NofM) else None
        score = inner(weight, stats.get("inner")) if inner else weight.abs() * stats["squared_norms"].mean_sq.sqrt()
        score = score[:, order]
        if isinstance(pattern, NofM):
            return Groups(score.masked_fill(~kept, torch.inf), pattern.of)
        return in_rows(expected, score, kept)


@lru_cache
def _seeing(inner: Statistic | None) -> Statistic:
    """One object for each inner statistic: what is asked for twice is one statistic."""
    parts = {"moments": moments, "squared_norms": squared_norms}
    return together(parts if inner is None else parts | {"inner": inner})
