"""Shared parts of depth planners: which blocks or sub-layers may go, and how many of an order do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harness.core.cost import Of, first_units
from harness.core.geometry import Geometry
from harness.core.structure import Cut, Unit
from harness.runtime.errors import Refusal, UserError

Depth = Literal["block", "sublayer"]
COUNTED: tuple[Of, ...] = ("blocks", "sublayers")


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
