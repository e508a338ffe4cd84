"""Width by Wanda's metric, each block losing the same share of its heads and of its channels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.catalogue import component
from harness.core.costs import Cost, Work, block_bytes
from harness.core.geometry import Geometry
from harness.core.interfaces import StructureView
from harness.core.structure import Plan
from harness.core.width import Module, Of, Width, finite, picked, pruned_norms, told


@component("planner", "wanda_sp")
@dataclass(frozen=True)
class WandaSp:
    """Wanda-sp, the structured Wanda that An et al. 2024 compare FLAP with (arXiv 2312.11983): a unit is worth the sum
    over its inputs of the mean of |W| ‖x‖ over outputs, W being the output projection of attention or the last matrix
    of the feed-forward part.

    Blocks are calibrated one after the other, on inputs that went through the narrowed blocks in front. Under grouped
    queries a unit is a key/value group with its query heads, which the authors' code has not.
    """

    amount: float = 0.2
    """The fraction that goes, of what `of` says; the fewest units reach it."""
    of: Of = "linears"
    """`linears`: the weights of the blocks' matrices; `parameters`: all parameters; `units`: the heads and the channels
    of every block, rounded down, as in the authors' code, which keeps units that tie with the first that stays."""
    round_to: int = 1
    """Blocks keep a multiple of so many channels."""
    keep_first: int = 0
    """Blocks at the beginning of the model that stay whole."""
    keep_last: int = 0
    """Blocks at its end that stay whole."""

    def __post_init__(self) -> None:
        self._width.check()

    @property
    def _width(self) -> Width:
        return Width(self.amount, self.of, self.round_to, self.keep_first, self.keep_last)

    def cost(self, geometry: Geometry, work: Work) -> Cost:
        """Each block runs twice over the calibration windows, to be seen and narrowed; the dense weights wait."""
        return Cost(forwards=2 * work.tokens, kept_bytes=block_bytes(geometry, work))

    def plan(self, view: StructureView) -> Plan:
        counts = self._width.evenly(view)

        def lowest(module: Module, scores: Tensor) -> Tensor:
            gone = torch.zeros_like(scores, dtype=torch.bool)
            gone[scores.argsort(stable=True)[: counts[module]]] = True
            return gone

        scores = finite(pruned_norms(view, self._width.modules(view), lowest))
        edit = picked(scores, counts)
        told(view, edit, scores)
        return Plan(edit)
