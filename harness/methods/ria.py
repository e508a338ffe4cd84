"""RIA: how much of its row and of its column a weight is, and the activations.

Shapes: O outputs, I inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from harness.catalogue import component
from harness.core.channels import assigned, dealt, kept_in
from harness.core.interfaces import Pruned
from harness.core.pattern import Group, NofM, Pattern, Unstructured, keep
from harness.core.statistic import SquaredNorms, squared_norms
from harness.runtime.errors import UserError

Importance = Literal["sum", "retained_degree"]


@component("method", "ria")
@dataclass(frozen=True)
class RIA:
    """Zhang et al. 2024 (ICLR; OpenReview Tr0lPx9woF), eq. 3: (|w| / Σ|column| + |w| / Σ|row|) · ‖x‖^`a`.

    As in the authors' code (7bc55b0) the whole matrix is compared; `group=row` is their `--per_outneuron`. ⌊n·s⌋
    weights of a group go. `variant=released` lets the threshold and all its ties go too, as that code does over a
    matrix: where more inputs than asked were never seen, all their weights go. Scores are in float32, where theirs have
    the model's dtype.

    For N:M, `reallocation` permutes the inputs before they are grouped, so that important ones do not meet: sorted by
    `importance` (the sum of their scores; or the sum of what unstructured pruning in `group` leaves of them) they are
    dealt to the groups. `lsa` then improves on it by linear sum assignment. The weights stay in their places, so the
    pattern holds in the permuted order, which a saved model has in `pruning.json`; records call it `2of4 permuted`.
    """

    a: float = 0.5
    """The power of the input's norm."""
    group: Group = "matrix"
    """The weights that are compared with one another."""
    reallocation: bool = False
    """For N:M, permute the inputs before they are grouped."""
    importance: Importance = "sum"
    """Order of the inputs: by the sum of their scores, or of those that unstructured pruning leaves."""
    lsa: bool = False
    """Improve the permutation by linear sum assignment."""
    variant: Literal["default", "released"] = "default"
    """`released`: what the authors' code does where it differs."""

    statistic = squared_norms

    def __post_init__(self) -> None:
        if self.a < 0:
            raise UserError(f"method.a={self.a} has to be at least 0.")
        if self.lsa and not self.reallocation:
            raise UserError("method.lsa=true starts from permuted inputs; set method.reallocation=true with it.")

    def score(self, weight: Tensor, stats: SquaredNorms) -> Tensor:
        """Scores to compare weights (O, I) by; a row or column of zeros has scores of zero."""
        size = weight.float().abs()
        relative = _over(size, size.sum(dim=0, keepdim=True)) + _over(size, size.sum(dim=1, keepdim=True))
        return relative * stats.mean_sq.sqrt() ** self.a

    @torch.no_grad()
    def prune(self, weight: Tensor, stats: SquaredNorms, pattern: Pattern) -> Pruned:
        score = self.score(weight, stats)
        if self.reallocation and isinstance(pattern, NofM) and 0 < pattern.keep < pattern.of:
            order = dealt(self._worth(score, pattern), pattern.of)
            if self.lsa:
                order = assigned(order, score, pattern)
            kept = kept_in(order, score, pattern)
            return Pruned(weight * kept, kept, order=order)
        kept = self._kept(score, pattern)
        return Pruned(weight * kept, kept)

    def _kept(self, score: Tensor, pattern: Pattern) -> Tensor:
        released = self.variant == "released" and self.group == "matrix"
        return keep(score, pattern, self.group, quota="threshold" if released else "exact")

    def _worth(self, score: Tensor, pattern: NofM) -> Tensor:
        """The worth of each input (I,) to a permutation."""
        if self.importance == "retained_degree":
            score = score * self._kept(score, Unstructured(pattern.sparsity))
        return score.sum(dim=0)


def _over(size: Tensor, total: Tensor) -> Tensor:
    return torch.where(total > 0, size / total, 0)
