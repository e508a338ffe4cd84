"""ISC: the walk of SparseGPT with a saliency that also counts what a weight is worth without compensation.

Shapes: O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from harness.catalogue import component
from harness.core.interfaces import Pruned
from harness.core.linalg import Factor, Inverse
from harness.core.pattern import NofM, Pattern
from harness.core.refit import refittable
from harness.core.statistic import Gram, gram
from harness.methods.sparsegpt import LATER, Dead, Divisor, SparseGPT, obs


@component("method", "isc")
@dataclass(frozen=True)
@refittable
class ISC:
    """Shao et al. 2024 (arXiv 2310.09499), eq. 4: w² (H_mm + 1/[H⁻¹]_mm), the scores of OBD and OBS added.

    H is the damped Gram matrix; [H⁻¹]_mm is that of the columns left when m is reached, U_mm², as SparseGPT reads it.
    All else is SparseGPT, N:M too. `variant=released` is the authors' code (talkking/MixGPT, 3c4726a): 1/U_mm in place
    of 1/U_mm², and for N:M the score of SparseGPT alone. Its product is a quotient here, which can turn a near tie.
    """

    damping: float = 0.01
    """The term added to the diagonal of the Gram matrix, in units of its mean."""
    blocksize: int = 128
    """Columns of a comparison group."""
    variant: Literal["default", "released"] = "default"
    """`released`: what the authors' code does where it differs."""
    dead: Dead = field(default="prune", metadata=LATER)
    """`keep`: inputs never seen lose no more weights than the quota."""

    statistic = gram

    def __post_init__(self) -> None:
        _ = self._sparsegpt  # which refuses settings out of range

    @property
    def _sparsegpt(self) -> SparseGPT:
        return SparseGPT(self.damping, self.blocksize, self.dead)

    def refuses(self, pattern: Pattern, shape: tuple[int, int]) -> str | None:
        return self._sparsegpt.refuses(pattern, shape)

    @torch.no_grad()
    def prune(self, weight: Tensor, stats: Gram, pattern: Pattern) -> Pruned:
        return self._sparsegpt.prune_by(self._divisor_for(stats, pattern), weight, stats, pattern)

    def prepare(self, stats: Gram) -> None:
        self._sparsegpt.prepare(stats)

    @torch.no_grad()
    def prune_together(self, weights: Sequence[Tensor], stats: Gram, patterns: Sequence[Pattern]) -> list[Pruned]:
        return self._sparsegpt.prune_together_by(self._divisor_for(stats, patterns[0]), weights, stats, patterns)

    def _divisor_for(self, stats: Gram, pattern: Pattern) -> Divisor:
        plain = self.variant == "released" and isinstance(pattern, NofM)
        return obs if plain else partial(self._divisor, stats)

    def _divisor(self, stats: Gram, inverse: Inverse | Factor) -> Tensor:
        """One over the parenthesis of eq. 4 (I,)."""
        diagonal = stats.matrix.diagonal() + stats.dead
        damped = diagonal + inverse.damping * diagonal.mean()  # H_mm
        left = inverse.factor.diagonal() if self.variant == "released" else obs(inverse)
        return 1 / (damped + 1 / left)
