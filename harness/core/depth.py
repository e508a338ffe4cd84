"""Shared parts of depth planners: which blocks or sub-layers may go, how many of an order do, what stands in for them.

Shapes: N windows, L tokens, D hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from harness.core.cost import Of, first_units
from harness.core.costs import Cost, Work
from harness.core.geometry import Geometry
from harness.core.interfaces import StructureView
from harness.core.structure import SUBLAYERS, Cut, Part, Plan, Unit
from harness.runtime.errors import Failure, Refusal, UserError

Depth = Literal["block", "sublayer", "attention", "mlp"]
Update = Literal["none", "mean"]
COUNTED: tuple[Of, ...] = ("blocks", "sublayers")
PARTS: Mapping[Depth, tuple[Part, ...]] = {
    "block": ("block",), "sublayer": SUBLAYERS, "attention": ("attention",), "mlp": ("mlp",),
}  # fmt: skip


@dataclass(frozen=True)
class Amount:
    """How much of a model goes.

    Args:
        amount: a number of blocks or sub-layers, or a fraction, as `of` says.
        keep_first, keep_last: blocks at the ends of the model that stay whole.
    """

    amount: float
    of: Of
    keep_first: int = 0
    keep_last: int = 0

    def check(self) -> None:
        """Look at what a user gave.

        Raises:
            UserError: it is no such amount.
        """
        if self.keep_first < 0 or self.keep_last < 0:
            raise UserError("planner.keep_first and planner.keep_last count blocks, from 0.")
        if self.amount == 0:
            raise UserError("planner.amount=0 takes nothing away; planner=none leaves the model as it is.")
        if self.of in COUNTED and (self.amount < 0 or self.amount != int(self.amount)):
            raise UserError(f"planner.amount={self.amount:g} has to be a whole number of {self.of}.")
        if self.of not in COUNTED and not 0 <= self.amount < 1:
            raise UserError(
                f"planner.amount={self.amount:g} has to be a fraction of the {self.of}, above 0 and below 1."
            )

    def free(self, units: Sequence[Unit], geometry: Geometry) -> tuple[Unit, ...]:
        """The units that may go."""
        stop = geometry.blocks - self.keep_last
        return tuple(unit for unit in units if self.keep_first <= unit.block < stop)

    def first_of(self, order: Sequence[Unit], geometry: Geometry) -> Cut:
        """The fewest units from the front of an order that take the amount away.

        Raises:
            Refusal: all of them are not enough.
        """
        try:
            return first_units(order, self.amount, self.of, geometry)
        except Refusal as error:
            kept = f", as the first {self.keep_first} and the last {self.keep_last} blocks stay"
            raise Refusal(str(error)[:-1] + (kept if self.keep_first or self.keep_last else "") + ".") from error


@dataclass(frozen=True)
class DepthPlanner:
    """Settings that every depth planner has, and what follows from them."""

    part: Depth = "block"
    """Units that go: whole blocks; attention and feed-forward parts in one order (`sublayer`); one of these alone."""
    amount: float = 1.0
    """How much goes, in units of `of`: a number of them, or a fraction, which the fewest units reach."""
    of: Of | None = None
    """A number of `blocks` or `sublayers`, a fraction of the weights of the blocks' matrices (`linears`) or of all
    `parameters`; None: what `part` says."""
    keep_first: int = 0
    """Blocks at the beginning of the model that stay."""
    keep_last: int = 0
    """Blocks at its end that stay."""
    update: Update = field(default="none", metadata={"identity": "unless default"})
    """Stand-in for a unit that goes: nothing, or the mean of what it adds to the hidden states of the dense model over
    all positions of the calibration windows (the emulated update of arXiv 2407.16286)."""

    def __post_init__(self) -> None:
        if self.part != "block" and self.of == "blocks":
            raise UserError(
                f"planner.of=blocks counts whole blocks; with planner.part={self.part} take planner.of=sublayers."
            )
        self.budget.check()

    @property
    def budget(self) -> Amount:
        """How much goes, in the units that `of` says or `part` implies."""
        of: Of = self.of or ("blocks" if self.part == "block" else "sublayers")
        return Amount(self.amount, of, self.keep_first, self.keep_last)

    def identity(self) -> dict[str, Any]:
        """The unit counted, said or not."""
        return {"of": self.budget.of}

    def candidates(self, view: StructureView) -> tuple[Unit, ...]:
        """The units of the part in scope, in the order in which the model runs them."""
        parts = PARTS[self.part]
        found = [unit for part in parts for unit in view.units(part)]
        return tuple(sorted(found, key=lambda unit: (unit.block, parts.index(unit.part))))

    def counts(self, geometry: Geometry, work: Work) -> tuple[int, int]:
        """How many units there are in scope, and about how many of them go."""
        units = [Unit(part, block) for block in range(geometry.blocks) for part in PARTS[self.part]]
        free = self.budget.free(units, geometry)
        try:
            going = len(self.budget.first_of(free, geometry).units)
        except Refusal:
            going = len(free)
        return len(PARTS[self.part]) * work.blocks, going

    def passing(self, geometry: Geometry, work: Work) -> Cost:
        """The cost of a pass over the calibration windows: their states in front of a block and behind it, a batch of
        both in float32. Of sub-layers, each block runs without its feed-forward part once more."""
        states = geometry.hidden * max(work.length, work.at_once)
        return Cost(
            forwards=work.tokens * (1.0 if self.part == "block" else 1.5),
            kept_bytes=2 * work.tokens * geometry.hidden * work.itemsize,
            working_bytes=2 * 4 * states,
        )

    def standing_in(self, geometry: Geometry, work: Work) -> Cost:
        """The cost of what stands in for the units that go."""
        return self.passing(geometry, work) if self.update == "mean" else Cost()

    def lowest(self, view: StructureView, scores: Mapping[Unit, float]) -> Plan:
        """The plan by which the units of the lowest scores go, all at once.

        Raises:
            Failure: a score is no number.
            Refusal: the units that may go are not enough.
        """
        if strange := [unit for unit, score in scores.items() if math.isnan(score)]:
            first = strange[0]
            raise Failure(f"the score of {first.part} {first.block} is no number; dtype=float32 may be enough.")
        order = sorted(self.budget.free(list(scores), view.geometry), key=lambda unit: (scores[unit], unit.block))
        view.log(
            scores=[{"part": unit.part, "block": unit.block, "score": score} for unit, score in scores.items()],
            order=[[unit.part, unit.block] for unit in order],
        )
        return self.decided(view, self.budget.first_of(order, view.geometry))

    def decided(self, view: StructureView, cut: Cut) -> Plan:
        """The plan of a cut, with what stands in for its units."""
        return Plan(cut, shifts=mean_updates(view, cut) if self.update == "mean" else {})


def mean_updates(view: StructureView, cut: Cut) -> dict[Unit, Tensor]:
    """The mean (D,) over windows and positions of what each block or sub-layer of a cut adds, in the model as it is."""
    sums: dict[Unit, Tensor] = {}
    tokens: dict[Unit, int] = {}
    kinds: tuple[Literal["block", "sublayer"], ...] = ("block", "sublayer")
    for kind in kinds:
        units = {unit for unit in cut.units if (unit.part == "block") == (kind == "block")}
        for unit, before, behind in view.hidden(kind) if units else ():
            if unit in units:
                added = (behind - before).double().sum(dim=(0, 1))
                sums[unit] = sums[unit] + added if unit in sums else added
                tokens[unit] = tokens.get(unit, 0) + before.shape[0] * before.shape[1]
    means = {unit: (sums[unit] / tokens[unit]).float() for unit in sorted(sums)}
    view.log(
        updates=[{"part": unit.part, "block": unit.block, "norm": float(mean.norm())} for unit, mean in means.items()]
    )
    return means
