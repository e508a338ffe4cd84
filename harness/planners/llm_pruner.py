"""Width by what the loss would change, to first or second order in the weights of a unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from harness.catalogue import component
from harness.core.costs import Cost, Work, gradient_sums
from harness.core.geometry import Geometry
from harness.core.interfaces import Gradients, Site, StructureView
from harness.core.rng import rng
from harness.core.structure import Plan
from harness.core.width import INSIDE, Module, Of, Scores, Width, finite, picked, told
from harness.runtime.errors import UserError

Importance = Literal["param_first", "vectorize", "param_second", "param_mix", "random"]


@component("planner", "llm_pruner")
@dataclass(frozen=True)
class LLMPruner:
    """Ma et al. 2023, LLM-Pruner (arXiv 2305.11627), block-wise: heads and channels of least importance go, with all of
    their rows and columns, but not in the first and last blocks.

    With g the gradient of the mean loss of some windows and F the mean of their squared gradients, a unit is worth the
    sum over its matrices of Σ |w g| (`param_first`, the paper's Element1), of Σ |w F w| (`param_second`), of
    Σ |w g − ½ w F w| (`param_mix`, Element2), or of |Σ w g| over single rows or columns (`vectorize`, Vector); `random`
    draws it. `local` takes the same share of every block, `global` compares all units as they are, where a head, the
    sum over its rows, hardly goes.

    Under grouped queries a unit is a key/value head with the query heads that read it, which are consecutive: the
    authors' code credits a query head's importance to another key/value head than that with which it goes. Unlike
    there, all of the units of a module may go under `global`.
    """

    importance: Importance = "param_first"
    """What a unit is worth."""
    ranking: Literal["local", "global"] = "local"
    """Whether every block loses the same share, or all units are compared with one another."""
    windows: int = 10
    """Calibration windows over which the loss is a mean; the paper has ten of 128 tokens."""
    amount: float = 0.2
    """The fraction that goes, of what `of` says; the fewest units reach it. The paper's 20 % is 0.25 of `units`."""
    of: Of = "parameters"
    """`linears`: the weights of the blocks' matrices; `parameters`: all parameters; `units`: heads and channels of the
    blocks that may lose some, rounded as in the authors' code."""
    round_to: int = 1
    """Blocks keep a multiple of so many channels."""
    keep_first: int | None = None
    """Blocks at the beginning of the model that stay whole; None: an eighth, 4 of 32 as in the paper."""
    keep_last: int | None = None
    """Blocks at its end that stay whole; None: a sixteenth, 2 of 32 as in the paper."""

    def __post_init__(self) -> None:
        if self.windows < 1:
            raise UserError("planner.windows counts calibration windows, from 1.")
        self._width.check()

    @property
    def needs_calibration(self) -> bool:
        """True unless units are drawn."""
        return self.importance != "random"

    @property
    def _width(self) -> Width:
        return Width(self.amount, self.of, self.round_to, self.keep_first or 0, self.keep_last or 0)

    @property
    def _squares(self) -> bool:
        return self.importance in ("param_second", "param_mix")

    def cost(self, geometry: Geometry, work: Work) -> Cost:
        """Forward and backward passes over some windows, and the gradients of one block in float32."""
        if not self.needs_calibration:
            return Cost()
        return gradient_sums(min(self.windows, work.windows), geometry, work, squares=self._squares)

    def plan(self, view: StructureView) -> Plan:
        width = self._width.with_ends(self.keep_first, self.keep_last, view.geometry)
        modules = width.modules(view)
        scores = finite(self._scores(view, modules))
        if self.ranking == "local":
            size = view.geometry.head

            def rounded(module: Module, units: int, fraction: float) -> int:
                """By rows, of which a head has several; what is kept is rounded down."""
                rows = size if module.part == "head" else 1
                return (units * rows - int(units * rows * (1 - fraction))) // rows

            edit = picked(scores, width.evenly(view, rounded))
        else:
            edit = width.lowest(scores, view.geometry)
        told(view, edit, scores)
        return Plan(edit)

    def _scores(self, view: StructureView, modules: Mapping[Module, int]) -> Scores:
        if self.importance == "random":
            generator = torch.Generator().manual_seed(rng(view.seed, "random heads and channels").randrange(2**63))
            return {module: torch.rand(units, generator=generator) for module, units in modules.items()}
        found = dict[Module, Tensor]()
        for block in view.gradients(view.windows[: self.windows], squares=self._squares):
            if Module("head", block.index) in modules:
                values, absolute = self._values(block), self.importance == "vectorize"
                for part in INSIDE:
                    matrices = block.by_unit(part, values, absolute=absolute)
                    found[Module(part, block.index)] = torch.stack(list(matrices.values())).sum(dim=0).cpu()
        return {module: found[module] for module in modules}

    def _values(self, block: Gradients) -> dict[Site, Tensor]:
        """What each weight (O, I) adds to the importance of its unit."""

        def of(site: Site, weight: Tensor) -> Tensor:
            if self.importance == "param_second":
                return (weight * block.squares[site] * weight).abs()
            first = weight * block.gradients[site]
            if self.importance == "param_mix":
                first = first - 0.5 * weight * block.squares[site] * weight
            return first if self.importance == "vectorize" else first.abs()

        return {site: of(site, weight) for site, weight in block.weights.items()}
