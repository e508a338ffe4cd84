"""Width by the norms of columns, each block losing the same share of its heads and of its channels."""

from __future__ import annotations

from dataclasses import dataclass

from harness.catalogue import component
from harness.core.costs import Cost, Work
from harness.core.geometry import Geometry
from harness.core.interfaces import StructureView
from harness.core.structure import Plan
from harness.core.width import Of, Width, finite, per_unit, picked, told


@component("planner", "magnitude_sp")
@dataclass(frozen=True)
class MagnitudeSp:
    """Structured magnitude pruning as in the code of FLAP (An et al. 2024, arXiv 2312.11983): a unit is worth the sum
    of the Euclidean norms of its columns in the output projection of attention or the last feed-forward matrix.
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

    needs_calibration = False

    def __post_init__(self) -> None:
        self._width.check()

    @property
    def _width(self) -> Width:
        return Width(self.amount, self.of, self.round_to, self.keep_first, self.keep_last)

    def cost(self, geometry: Geometry, work: Work) -> Cost:
        """A sum of squares over two matrices of every block."""
        return Cost(operations=2.0 * work.blocks * geometry.hidden * (geometry.query + geometry.wide))

    def plan(self, view: StructureView) -> Plan:
        counts = self._width.evenly(view)
        writers = {part: view.writers(part) for part in ("head", "channel")}
        scores = {
            module: per_unit(view.weights[writers[module.part][module.block]].float().norm(dim=0), units).sum(1)
            for module, units in self._width.modules(view).items()
        }
        edit = picked(finite(scores), counts)
        told(view, edit, scores)
        return Plan(edit)
