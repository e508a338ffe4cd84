"""Shared parts of width planners: what heads and channels are worth, how many of them go, and which.

A module is all heads or all channels of one block; its units compete by scores (units,), a higher one being worth more.
A head is a key/value group with the query heads that read it, which are consecutive. Shapes: O outputs, I inputs.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from harness.core.cost import removed
from harness.core.geometry import Geometry
from harness.core.interfaces import BlockView, Pruned, Site, StructureView
from harness.core.pattern import Pattern, Unstructured
from harness.core.statistic import SquaredNorms, squared_norms
from harness.core.structure import Cut, Part, Unit
from harness.runtime.errors import Failure, Refusal, UserError

INSIDE: tuple[Part, ...] = ("head", "channel")
Of = Literal["linears", "parameters", "units"]
"""A fraction of the weights of the blocks' matrices, of all parameters, or of heads and of channels alike."""


class Module(NamedTuple):
    """The heads or the channels of one block."""

    part: Part
    block: int


Scores = Mapping[Module, Tensor]
Counts = Mapping[Module, int]
Count = Callable[[Module, int, float], int]
"""How many of so many units of a module go at a fraction."""


def floored(_: Module, units: int, fraction: float) -> int:
    """No more than the fraction: int(n·r)."""
    return int(units * fraction)


@dataclass(frozen=True)
class Width:
    """How much of a model goes in heads and channels.

    Args:
        amount: the fraction that goes, of what `of` says.
        round_to: blocks keep multiples of so many channels, as far as they lose any.
        keep_first, keep_last: blocks at the ends of the model that stay whole.
    """

    amount: float
    of: Of
    round_to: int = 1
    keep_first: int = 0
    keep_last: int = 0

    def check(self) -> None:
        """Look at what a user gave.

        Raises:
            UserError: it is no such amount.
        """
        if not 0 <= self.amount < 1:
            raise UserError(f"planner.amount={self.amount:g} has to be a fraction of the {self.of}, from 0 to below 1.")
        if self.keep_first < 0 or self.keep_last < 0:
            raise UserError("planner.keep_first and planner.keep_last count blocks, from 0.")
        if self.round_to < 1:
            raise UserError("planner.round_to counts channels, from 1.")

    def with_ends(self, first: int | None, last: int | None, geometry: Geometry) -> Width:
        """The same with so many blocks at the ends that stay; where nothing was said as LLM-Pruner's paper has it.

        Of 32 blocks 4 and 2 stay there: an eighth and a sixteenth, rounded up.
        """
        first = -(-geometry.blocks // 8) if first is None else first
        last = -(-geometry.blocks // 16) if last is None else last
        return replace(self, keep_first=first, keep_last=last)

    def modules(self, view: StructureView) -> dict[Module, int]:
        """The modules that may lose units, and how many they have.

        Raises:
            Refusal: there are none, or their units cannot go one by one.
        """
        geometry = view.geometry
        if geometry.experts:
            raise Refusal("heads and channels cannot go one by one: the feed-forward parts are mixtures of experts.")
        if geometry.norms_span:
            raise Refusal("heads cannot go one by one: a norm spans all of them.")
        if geometry.wide < self.round_to:
            raise Refusal(f"planner.round_to={self.round_to} is more than the {geometry.wide} channels of a block.")
        stop = geometry.blocks - self.keep_last
        in_scope = sorted({unit.block for unit in view.units("head")})
        free = [block for block in in_scope if self.keep_first <= block < stop]
        if not free:
            raise Refusal(
                f"no block may lose heads or channels: the scope has {_span(in_scope)}, of which the first "
                f"{self.keep_first} and the last {self.keep_last} of the model stay."
            )
        return {Module(part, block): geometry.count(part) for block in free for part in INSIDE}

    def evenly(self, view: StructureView, count: Count = floored) -> Counts:
        """How many units of every module go, if all lose the same share of theirs.

        Of linears and parameters the fewest that reach the amount: the last unit is one of the first block that has not
        given its own yet. Of units as `count` rounds.

        Raises:
            Refusal: see `modules`; or all units are not enough.
        """
        modules = self.modules(view)
        if self.of == "units":
            counts = {module: count(module, units, self.amount) for module, units in modules.items()}
            return {module: self._rounded(module, gone, modules[module]) for module, gone in counts.items()}
        ranked = {
            Unit(part, block, rank): ((rank + 1) / units, block)
            for (part, block), units in modules.items()
            for rank in range(units)
        }
        edit = self.first_of(sorted(ranked, key=ranked.__getitem__), view.geometry)
        return {module: len(edit.gone(*module)) for module in modules}

    def _rounded(self, module: Module, gone: int, units: int) -> int:
        if module.part != "channel" or self.round_to == 1 or gone == 0:
            return gone
        return max(0, gone - (gone - units) % self.round_to)

    def share(self, modules: Counts, geometry: Geometry) -> float:
        """The share of the units of these modules that the amount is, if all lose the same."""
        if self.of == "units":
            return self.amount
        every = Cut(frozenset(Unit(*module, index) for module, units in modules.items() for index in range(units)))
        return self.amount / removed(every, geometry, self.of)

    def lowest(self, scores: Scores, geometry: Geometry) -> Cut:
        """The units of lowest score, all modules compared with one another.

        Raises:
            Refusal: all units are not enough.
        """
        values = torch.cat([found.double().cpu() for found in scores.values()])
        units = [Unit(*module, index) for module, found in scores.items() for index in range(len(found))]
        return self.first_of([units[at] for at in values.argsort(stable=True).tolist()], geometry)

    def first_of(self, order: Sequence[Unit], geometry: Geometry, total: int | None = None) -> Cut:
        """The fewest units from the front of an order that take the amount away; of channels whole bundles.

        Args:
            total: how many units an amount of units is counted of, if others may not go.

        Raises:
            Refusal: all of them are not enough.
        """
        bundles = self._bundles(order, geometry)
        sizes = [len(bundle) for bundle in bundles]
        if self.of == "units":
            total = len(order) if total is None else total
            wanted = total - int(total * (1 - self.amount))
            if wanted > sum(sizes):
                raise Refusal(f"{wanted} heads and channels cannot go: of those that may, {sum(sizes)} can.")
            return _cut(bundles[: bisect_left(list(accumulate(sizes, initial=0)), wanted)])
        return self._fewest(bundles, sizes, self.of, geometry)

    def _fewest(
        self, bundles: Sequence[Sequence[Unit]], sizes: Sequence[int], of: Literal["linears", "parameters"],
        geometry: Geometry,
    ) -> Cut:  # fmt: skip
        """The same by what units weigh: near what they do one by one, as a module whose last goes takes more along."""

        def taken(count: int) -> float:
            return removed(_cut(bundles[:count]), geometry, of)

        if (total := taken(len(bundles))) < self.amount:
            blocks = _span(sorted({unit.block for bundle in bundles for unit in bundle}))
            raise Refusal(
                f"{self.amount:g} of the {of} cannot go: all heads and channels that may, of {blocks}, are {total:.4g}."
            )
        alone = {part: removed(Cut(frozenset({Unit(part, 0)})), geometry, of) for part in INSIDE}
        weights = (size * alone[bundle[0].part] for bundle, size in zip(bundles, sizes, strict=True))
        guess = bisect_left(list(accumulate(weights, initial=0.0)), self.amount)
        low, high = max(0, guess - 8), min(len(bundles), guess + 1)
        low, high = (0 if taken(low) >= self.amount else low), (len(bundles) if taken(high) < self.amount else high)
        return _cut(bundles[: bisect_left(range(len(bundles) + 1), self.amount, low, high, key=taken)])

    def _bundles(self, order: Sequence[Unit], geometry: Geometry) -> list[list[Unit]]:
        """Units that go together, where the last of them stands in the order: single heads, and so many channels that
        a multiple is left."""
        if self.round_to == 1:
            return [[unit] for unit in order]
        first = geometry.wide % self.round_to or self.round_to
        waiting, sizes, bundles = dict[int, list[Unit]](), dict[int, int](), list[list[Unit]]()
        for unit in order:
            if unit.part == "head":
                bundles.append([unit])
                continue
            bundle = waiting.setdefault(unit.block, [])
            bundle.append(unit)
            if len(bundle) == sizes.get(unit.block, first):
                bundles.append(waiting.pop(unit.block))
                sizes[unit.block] = self.round_to
        return bundles


def _cut(bundles: Iterable[Sequence[Unit]]) -> Cut:
    return Cut(frozenset(unit for bundle in bundles for unit in bundle))


def _span(blocks: Sequence[int]) -> str:
    return f"the blocks {blocks[0]}-{blocks[-1]}" if blocks else "no blocks"


def picked(scores: Scores, counts: Counts, *, ties_stay: bool = False) -> Cut:
    """The units of lowest score of each module, so many as it is to lose.

    Args:
        ties_stay: keep all that tie with the first that stays, as the released code of FLAP does: nothing goes from a
            module of which more channels are dead than shall go.
    """
    units = set[Unit]()
    for module, count in counts.items():
        found = scores[module]
        order = found.argsort(stable=True)
        gone = order[:count]
        if ties_stay and 0 < count < len(order):
            gone = gone[found[gone] < found[order[count]]]
        units |= {Unit(*module, index) for index in gone.tolist()}
    return Cut(frozenset(units))


def per_unit(values: Tensor, units: int) -> Tensor:
    """Values of inputs (I,) as those of each unit (units, I / units)."""
    return values.unflatten(0, (units, -1))


def input_norms(weight: Tensor, stats: SquaredNorms, units: int) -> Tensor:
    """Wanda's metric of a unit, as FLAP's authors sum it: Σ over its inputs of the mean of |W| ‖x‖ over outputs.

    Args:
        weight: (O, I) of the matrix through which the module writes to the residual stream.
        units: heads or channels that its inputs are of.
    """
    return per_unit((weight.float().abs() * stats.mean_sq.to(weight.device).sqrt()).mean(0), units).sum(1)


Choose = Callable[[Module, Tensor], Tensor]
"""A module and the scores (units,) of its units → True (units,) for those that go."""


def pruned_norms(view: StructureView, modules: Counts, choose: Choose) -> dict[Module, Tensor]:
    """Scores of units by `input_norms`, every block seeing those in front of it without what `choose` took of them.

    The model is as it was at the end.
    """
    walk, scores = _Zeroing(view, modules, choose), dict[Module, Tensor]()
    for block in view.pruned(walk, dict.fromkeys(view.shapes, Unstructured(0.0))):
        scores |= walk.scores.pop(block.index)
    return scores


class _Zeroing:
    """A method that zeroes the columns of what goes, by which its output is that of the cut block."""

    statistic = squared_norms
    beside_dense = False

    def __init__(self, view: StructureView, modules: Counts, choose: Choose) -> None:
        self._writers = {part: view.writers(part) for part in INSIDE}
        self._modules, self._choose = modules, choose
        self.scores: dict[int, dict[Module, Tensor]] = {}

    def prune_block(self, block: BlockView, patterns: Mapping[Site, Pattern]) -> dict[Site, Pruned]:
        mine = {module: self._writers[module.part][block.index] for module in self._modules if module[1] == block.index}
        stats = block.observe(dict.fromkeys(mine.values(), squared_norms)) if mine else {}
        weights = block.weights
        done = {site: Pruned(weight, torch.ones_like(weight, dtype=torch.bool)) for site, weight in weights.items()}
        scores = {
            module: input_norms(weights[site], stats[site], self._modules[module]) for module, site in mine.items()
        }
        for module, site in mine.items():
            weight, gone = weights[site], self._choose(module, scores[module])
            stays = ~gone.to(weight.device).repeat_interleave(weight.shape[1] // len(gone))
            done[site] = Pruned(weight * stays, stays.expand_as(weight))
        self.scores[block.index] = scores
        return done


def finite(scores: Scores) -> Scores:
    """The scores.

    Raises:
        Failure: one is not finite.
    """
    for (part, block), found in scores.items():
        if not bool(torch.isfinite(found).all()):
            raise Failure(f"scores of {part}s of block {block} are not finite; dtype=float32 may be enough.")
    return scores


def told(view: StructureView, edit: Cut, scores: Scores) -> None:
    """Put into the record what shares of the model go, what is left, and what heads were worth.

    Scores of channels are many: their mean and standard deviation stand for them.
    """
    geometry = view.geometry
    shares: dict[str, float] = {of: removed(edit, geometry, of) for of in ("linears", "parameters")}
    units = {part: geometry.blocks * geometry.count(part) for part in INSIDE}
    left = {
        part: [geometry.count(part) - len(edit.gone(part, block)) for block in range(geometry.blocks)]
        for part in INSIDE
    }
    shares |= {f"{part}s": 1 - sum(left[part]) / units[part] for part in INSIDE}
    by_block: dict[str, dict[str, Any]] = {}
    for (part, block), found in scores.items():
        spread = {"mean": float(found.mean()), "std": float(found.std(correction=0))}
        by_block.setdefault(f"{part}s", {})[str(block)] = found.tolist() if part == "head" else spread
    view.log(removed=shares, left={f"{part}s": counts for part, counts in left.items()}, scores=by_block)
