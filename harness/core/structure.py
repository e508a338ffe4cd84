"""Structural decisions as data: which units of a decoder go.

Everything structural is a set of units; a unit has a part, a block, and an index within the block. All are numbered as
in the dense model, whatever is gone by then. Planners choose units, `models/gates.py` tries a choice and
`models/surgery.py` makes it, `core/cost.py` says what is left of the model without one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, cast, get_args

from torch import Tensor

Part = Literal["block", "attention", "mlp", "head", "channel", "expert"]
"""A whole block; its attention or its feed-forward part, each with its norm; a key/value group with its query heads; a
hidden unit of the feed-forward part; an expert of a mixture."""
SUBLAYERS: tuple[Part, ...] = ("attention", "mlp")


@dataclass(frozen=True, slots=True, order=True)
class Unit:
    """One unit; `index` counts heads, channels or experts of the block, and is 0 for a block or a sub-layer."""

    part: Part
    block: int
    index: int = 0


@dataclass(frozen=True)
class Cut:
    """The units that go. Unions of cuts are cuts; units of what is gone as a whole are not said again."""

    units: frozenset[Unit] = frozenset()

    def __post_init__(self) -> None:
        units = frozenset(self.units)
        whole = {unit.block for unit in units if unit.part == "block"}
        gone: dict[Part, set[int]] = {part: {unit.block for unit in units if unit.part == part} for part in SUBLAYERS}
        whole |= gone["attention"] & gone["mlp"]
        inner: dict[Part, Part] = {"head": "attention", "channel": "mlp", "expert": "mlp"}
        left = {
            unit
            for unit in units
            if unit.block not in whole and not (unit.part in inner and unit.block in gone[inner[unit.part]])
        }
        object.__setattr__(self, "units", frozenset(left | {Unit("block", block) for block in whole}))

    @classmethod
    def of_blocks(cls, blocks: Iterable[int]) -> Cut:
        """The cut of whole blocks."""
        return cls(frozenset(Unit("block", block) for block in blocks))

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Cut:
        """The cut that `json` gave."""
        units = set[Unit]()
        for name, gone in plain.items():
            assert name in get_args(Part), name
            part = cast("Part", name)
            if isinstance(gone, Mapping):
                units |= {Unit(part, int(block), index) for block, indices in gone.items() for index in indices}
            else:
                units |= {Unit(part, block) for block in gone}
        return cls(frozenset(units))

    def json(self) -> dict[str, Any]:
        """Plain values: blocks and sub-layers by block, heads, channels and experts by block and index."""
        plain: dict[str, Any] = {}
        for part in get_args(Part):
            gone = self._by_part.get(part, {})
            if part in ("block", *SUBLAYERS):
                found: Any = sorted(gone)
            else:
                found = {str(block): list(indices) for block, indices in sorted(gone.items())}
            if found:
                plain[part] = found
        return plain

    def __bool__(self) -> bool:
        return bool(self.units)

    def __or__(self, other: Cut) -> Cut:
        return Cut(self.units | other.units)

    def gone(self, part: Part, block: int) -> tuple[int, ...]:
        """The indices of a part that a block loses, ascending: (0,) for a sub-layer that goes."""
        return self._by_part.get(part, {}).get(block, ())

    @property
    def blocks(self) -> tuple[int, ...]:
        """The blocks that go as a whole, ascending."""
        return tuple(sorted(self._by_part.get("block", {})))

    @cached_property
    def _by_part(self) -> dict[str, dict[int, tuple[int, ...]]]:
        found: dict[str, dict[int, list[int]]] = {}
        for unit in self.units:
            found.setdefault(unit.part, {}).setdefault(unit.block, []).append(unit.index)
        return {part: {block: tuple(sorted(one)) for block, one in held.items()} for part, held in found.items()}


UNCUT = Cut()
"""The cut that leaves everything."""


class Plan(NamedTuple):
    """A planner's answer: what goes, and tensors by their dense names that come in or change (a bias in return, say).

    `shifts` are constants (D,) that are added to the residual stream in place of blocks and sub-layers that go. Tensors
    and shifts are in the model and not in the record.
    """

    edit: Cut = UNCUT
    tensors: Mapping[str, Tensor] = {}
    shifts: Mapping[Unit, Tensor] = {}
