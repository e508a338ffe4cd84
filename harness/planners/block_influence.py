"""Depth by how little a block or a sub-layer changes the hidden states that pass through it."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from harness.catalogue import component
from harness.core.cost import Of
from harness.core.costs import Cost, Work
from harness.core.depth import Amount, Depth
from harness.core.geometry import Geometry
from harness.core.interfaces import StructureView
from harness.core.structure import Plan, Unit
from harness.runtime.errors import Failure, UserError

Metric = Literal["cosine", "relative_l1", "relative_l2"]


@component("planner", "block_influence")
@dataclass(frozen=True)
class BlockInfluence:
    """Men et al. 2024, ShortGPT (arXiv 2403.03853), eq. 1: the block influence, 1 − mean cos(h, h′), where h is in
    front of a block and h′ behind it; the blocks of least influence go, all at once.

    Siddiqui et al. 2024 (arXiv 2407.16286) compare it with the relative update, mean ‖h′ − h‖ / ‖h‖ in the L1 or L2
    norm, and apply both to sub-layers: each is measured across its own residual addition and goes with its norm. Means
    are over all positions of a window, the first one too, and then over windows.
    """

    metric: Metric = "cosine"
    """How a change of the hidden states is measured."""
    part: Depth = "block"
    """Units that go: whole blocks, or attention and feed-forward parts in one order."""
    amount: float = 1.0
    """How much goes, in units of `of`: a number of them, or a fraction, which the fewest units reach."""
    of: Of | None = None
    """A number of `blocks` or `sublayers`, a fraction of the weights of the blocks' matrices (`linears`) or of all
    `parameters`; None: what `part` says."""
    keep_first: int = 0
    """Blocks at the beginning of the model that stay."""
    keep_last: int = 0
    """Blocks at its end that stay."""

    def __post_init__(self) -> None:
        if self.part == "sublayer" and self.of == "blocks":
            raise UserError(
                "planner.of=blocks counts whole blocks; with planner.part=sublayer take planner.of=sublayers."
            )
        self._amount.check()

    @property
    def _amount(self) -> Amount:
        of: Of = self.of or ("blocks" if self.part == "block" else "sublayers")
        return Amount(self.amount, of, self.keep_first, self.keep_last)

    def identity(self) -> dict[str, Any]:
        """The unit counted, said or not."""
        return {"of": self._amount.of}

    def cost(self, geometry: Geometry, work: Work) -> Cost:
        """One pass over the calibration windows; their states in front of a block and behind it, a batch of both in
        float32."""
        states = geometry.hidden * max(work.length, work.at_once)
        return Cost(
            forwards=work.tokens,
            kept_bytes=2 * work.tokens * geometry.hidden * work.itemsize,
            working_bytes=2 * 4 * states,
        )

    def plan(self, view: StructureView) -> Plan:
        scores = self._scores(view)
        order = sorted(self._amount.free(list(scores), view.geometry), key=lambda unit: (scores[unit], unit.block))
        view.log(
            scores=[{"part": unit.part, "block": unit.block, "score": score} for unit, score in scores.items()],
            order=[[unit.part, unit.block] for unit in order],
        )
        return Plan(self._amount.first_of(order, view.geometry))

    def _scores(self, view: StructureView) -> dict[Unit, float]:
        """The influence of every unit that may go, in the order in which the model runs them."""
        means: dict[Unit, list[Tensor]] = defaultdict(list)
        for unit, before, behind in view.hidden(self.part):
            means[unit].append(influence(before, behind, self.metric).double().mean(dim=1))  # (N,)
        scores = {unit: float(torch.cat(found).mean()) for unit, found in means.items()}
        if strange := [unit for unit, score in scores.items() if not math.isfinite(score)]:
            first = strange[0]
            raise Failure(f"the influence of {first.part} {first.block} is not finite; dtype=float32 may be enough.")
        return scores


def influence(before: Tensor, behind: Tensor, metric: Metric) -> Tensor:
    """How much hidden states (N, L, D) change at each position (N, L)."""
    if metric == "cosine":
        return 1 - functional.cosine_similarity(before, behind, dim=-1)
    order = 1 if metric == "relative_l1" else 2
    return (behind - before).norm(order, dim=-1) / before.norm(order, dim=-1)
