"""SAAP, from description: neither the authors' code nor the full text of the paper could be had.

Known, from the abstract and notes on the paper, and chosen here:

* Structures are groups of coupled rows and columns. Here: heads and channels, key/value groups under grouped queries.
* Their importance is |gᵀw − ½ wᵀHw|, of whole structures (coarse) and of single elements (fine). Here H is the mean
  over windows of squared gradients of each window's loss, and a structure is a unit's part of one matrix.
* Both are fused by homoscedastic uncertainty: Σ I / (2σ²) + log σ, with σ learned. Here σ² is, in closed form, what
  minimises the mean of that over all structures of a kind: σ² = mean I. Nothing is trained.
* An importance fluctuation indicator says which modules lose how much; its formula and direction are not known. Here it
  is the standard deviation over the mean of a module's importance, or one over that mean.
* Recovery is group-wise fine-tuning of quantised weights with adapters. Here it is none; choose a `recovery`.

No number of the paper is claimed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from harness.catalogue import component
from harness.core.costs import Cost, Work, gradient_sums
from harness.core.geometry import Geometry
from harness.core.interfaces import StructureView
from harness.core.structure import Plan, Unit
from harness.core.width import INSIDE, Module, Of, Scores, Width, finite, told
from harness.runtime.errors import UserError

LEFT = {"head": 1, "channel": 8}
"""Units that a module keeps at least."""
CAP = 2.0
"""The largest share of a module, over that of all."""


@component("planner", "saap")
@dataclass(frozen=True)
class Saap:
    """Zheng et al. 2024, SAAP (arXiv 2412.15127), from description: importance of structures as wholes and element by
    element, fused; modules whose importance fluctuates more lose more. Numbers of the paper are not claimed.

    With g the mean gradient and F the mean squared gradient of single windows, d = w g − ½ w F w: a unit is worth
    ½ (V / mean V + E / mean E), where V is the sum over its matrices of |Σ d|, E that of Σ |d|, and means are over all
    heads, or channels, that may go. That is Σ I / (2σ²) + log σ with the σ² of each that minimises its mean, up to a
    constant. A module, the heads or the channels of a block, loses a share in proportion to its indicator, not more
    than twice that of all, and keeps a head and eight channels. What the paper says and what is chosen here stands at
    the top of the file.
    """

    fluctuation: Literal["spread", "mean"] = "spread"
    """The indicator of a module: `spread`, the standard deviation of its importance over the mean; `mean`, one over the
    mean, so that modules of little importance lose more."""
    windows: int = 10
    """Calibration windows of which gradients are taken."""
    amount: float = 0.2
    """The fraction that goes, of what `of` says; the fewest units reach it."""
    of: Of = "parameters"
    """`linears`: the weights of the blocks' matrices; `parameters`: all parameters; `units`: heads and channels of the
    blocks that may lose some."""
    round_to: int = 1
    """Blocks keep a multiple of so many channels."""
    keep_first: int | None = None
    """Blocks at the beginning of the model that stay whole; None: an eighth, 4 of 32 as LLM-Pruner's."""
    keep_last: int | None = None
    """Blocks at its end that stay whole; None: a sixteenth, 2 of 32 as LLM-Pruner's."""

    def __post_init__(self) -> None:
        if self.windows < 1:
            raise UserError("planner.windows counts calibration windows, from 1.")
        self._width.check()

    @property
    def _width(self) -> Width:
        return Width(self.amount, self.of, self.round_to, self.keep_first or 0, self.keep_last or 0)

    def cost(self, geometry: Geometry, work: Work) -> Cost:
        """Forward and backward passes over some windows, and two sums of gradients of one block in float32."""
        return gradient_sums(min(self.windows, work.windows), geometry, work, squares=True)

    def plan(self, view: StructureView) -> Plan:
        width = self._width.with_ends(self.keep_first, self.keep_last, view.geometry)
        modules = width.modules(view)
        scores = finite(self._scores(view, modules))
        indicators = {module: self._indicator(found) for module, found in scores.items()}
        share = width.share(modules, view.geometry)
        units = sum(modules.values())
        edit = width.first_of(order(scores, indicators, CAP * share), view.geometry, units)
        told(view, edit, scores)
        view.log(indicators=[[*module, value] for module, value in indicators.items()])
        return Plan(edit)

    def _indicator(self, scores: Tensor) -> float:
        mean = float(scores.mean())
        return 1 / max(mean, 1e-12) if self.fluctuation == "mean" else float(scores.std()) / max(mean, 1e-12)

    def _scores(self, view: StructureView, modules: Mapping[Module, int]) -> Scores:
        found: dict[str, dict[Module, Tensor]] = {"vector": {}, "element": {}}
        for block in view.gradients(view.windows[: self.windows], squares=True):
            if Module("head", block.index) not in modules:
                continue
            change = {
                site: weight * (block.gradients[site] - 0.5 * weight * block.squares[site])
                for site, weight in block.weights.items()
            }
            sizes = {site: one.abs() for site, one in change.items()}
            for part in INSIDE:
                module = Module(part, block.index)
                vectors, elements = (block.by_unit(part, one).values() for one in (change, sizes))
                found["vector"][module] = torch.stack(list(vectors)).abs().sum(dim=0).cpu()
                found["element"][module] = torch.stack(list(elements)).sum(dim=0).cpu()
        return {module: fused(found, module) for module in modules}


def fused(found: Mapping[str, Mapping[Module, Tensor]], module: Module) -> Tensor:
    """The importance (units,) of a module's units, from that of all structures in both ways."""
    total = torch.zeros_like(found["vector"][module])
    for values in found.values():
        alike = torch.cat([one for other, one in values.items() if other.part == module.part])
        total += 0.5 * values[module] / alike.mean().clamp_min(1e-30)
    return total


def order(scores: Scores, indicators: Mapping[Module, float], cap: float) -> list[Unit]:
    """The units that may go, first to last, such that each module's share grows with its indicator, up to a cap."""
    when = dict[Unit, float]()
    for module, found in scores.items():
        units = len(found)
        most = min(units - LEFT[module.part], int(units * cap))
        for rank, index in enumerate(found.argsort(stable=True)[: max(0, most)].tolist()):
            when[Unit(*module, index)] = (rank + 1) / units / max(indicators[module], 1e-12)
    return sorted(when, key=lambda unit: when[unit])
