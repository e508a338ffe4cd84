"""FLAP: width by how much the inputs of a unit vary, and the mean of what goes given back as a bias.

Shapes: L tokens, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from harness.catalogue import component
from harness.core.costs import Cost, Work
from harness.core.geometry import Geometry
from harness.core.interfaces import StructureView
from harness.core.statistic import SquaredNorms, Statistic, squared_norms, together
from harness.core.structure import Cut, Plan, Unit
from harness.core.width import INSIDE, Module, Of, Scores, Width, finite, per_unit, picked, told
from harness.runtime.errors import UserError

Metric = Literal["WIFV", "IFV", "WIFN"]
Structure = Literal["AL-AM", "UL-UM"]


class Fluctuation(NamedTuple):
    """The mean of each input (I,), how it varies around it (I,), and how often it was seen.

    `seen` counts windows in the released form, which sums squares over the tokens of each, else tokens.
    """

    mean: Tensor
    variance: Tensor
    seen: int


@component("planner", "flap")
@dataclass(frozen=True)
class Flap:
    """An et al. 2024, FLAP (arXiv 2312.11983): inputs of the output projection of attention and of the last matrix W of
    the feed-forward part are worth the variance of x_j times ‖W_·j‖² (WIFV), the variance alone (IFV), or the mean of
    |W_·j| ‖x_j‖ over outputs (WIFN); attention's is squared. What goes is replaced by its mean: W (x̄ ⊙ gone) becomes
    a bias of W.

    With `AL-AM` scores are standardised in each block, over all inputs of a matrix; a head is worth the mean over its
    inputs, and all heads and channels of the model compete. With `UL-UM` every block loses the same share of its heads,
    each worth the sum, and of its channels. A part of a block may lose all units: it goes with its norm, its bias stays
    in the residual stream; of a block of which nothing is left the bias goes too.

    `released` varies as the authors' code does: around the running mean of the windows so far, the first window leaves
    nothing, and squares are summed over the tokens of a window, so that the order of windows matters. There `amount` is
    the code's ratio: a head weighs as much as a whole number of channels, 170 in LLaMA-7B, the score whose cumulated
    weight is nearest to what shall stay is the first that goes (AL-AM), or shares are rounded down and what ties with
    the first that stays stays too (UL-UM). The code's rounding of means to 16 bits is not done.
    """

    metric: Metric = "WIFV"
    """What an input is worth."""
    structure: Structure = "AL-AM"
    """`AL-AM`: all units compete with one another; `UL-UM`: every block loses the same share of either."""
    bias: bool = True
    """Whether the mean of what goes comes back as a bias; not every family has a place for it in a plain checkpoint."""
    variant: Literal["default", "released"] = "default"
    """`released`: rounding and running sums as in the authors' code."""
    amount: float = 0.2
    """The fraction that goes, of what `of` says; the fewest units reach it."""
    of: Of = "linears"
    """`linears`: the weights of the blocks' matrices; `parameters`: all parameters; `units`: heads and channels, those
    of every block alike with UL-UM."""
    round_to: int = 1
    """Blocks keep a multiple of so many channels."""
    keep_first: int = 0
    """Blocks at the beginning of the model that stay whole."""
    keep_last: int = 0
    """Blocks at its end that stay whole."""

    def __post_init__(self) -> None:
        self._width.check()
        if self.variant == "released" and (self.of != "linears" or self.round_to != 1):
            raise UserError(
                "planner.variant=released rounds as its authors do; leave planner.of and planner.round_to out."
            )

    @property
    def _width(self) -> Width:
        return Width(self.amount, self.of, self.round_to, self.keep_first, self.keep_last)

    def cost(self, geometry: Geometry, work: Work) -> Cost:
        """One pass over the calibration windows."""
        return Cost(forwards=work.tokens)

    def plan(self, view: StructureView) -> Plan:
        modules = self._width.modules(view)
        values, means = self._seen(view, modules)
        scores = finite(self._scores(values, modules))
        if self.structure == "UL-UM":
            released = self.variant == "released"
            width = replace(self._width, of="units") if released else self._width
            edit = picked(scores, width.evenly(view), ties_stay=released)
        elif self.variant == "released":
            edit = as_released(scores, self.amount, view.geometry)
        else:
            edit = self._width.lowest(scores, view.geometry)
        told(view, edit, scores)
        return Plan(edit, biases(view, edit, means) if self.bias else {})

    def _seen(
        self, view: StructureView, modules: Mapping[Module, int]
    ) -> tuple[dict[Module, Tensor], dict[Module, Tensor]]:
        """What each input (I,) is worth, and its mean, by module."""
        writers = {part: view.writers(part) for part in INSIDE}
        moving: Statistic = running_fluctuation if self.variant == "released" else fluctuation
        statistic = together({"moving": moving, "norms": squared_norms}) if self.metric == "WIFN" else moving
        values, means = dict[Module, Tensor](), dict[Module, Tensor]()
        for block in view.observe(statistic):
            mine = {Module(part, block.index): writers[part].get(block.index) for part in INSIDE}
            sites = {module: site for module, site in mine.items() if site is not None and module in modules}
            states = block.observe(dict.fromkeys(sites.values(), statistic)) if sites else {}
            for module, site in sites.items():
                state: Any = states[site] if self.metric != "WIFN" else states[site]["moving"]
                norms = states[site]["norms"] if self.metric == "WIFN" else None
                values[module] = worth(block.weights[site], state, norms, self.metric)
                means[module] = state.mean
        return values, means

    def _scores(self, values: Mapping[Module, Tensor], modules: Mapping[Module, int]) -> Scores:
        scores = {}
        for module, units in modules.items():
            value = values[module].square() if module.part == "head" else values[module]
            if self.structure == "AL-AM":
                scores[module] = per_unit((value - value.mean()) / value.std(), units).mean(1)
            else:
                scores[module] = per_unit(value, units).sum(1)
        return scores


def worth(weight: Tensor, seen: Fluctuation, norms: SquaredNorms | None, metric: Metric) -> Tensor:
    """What each input (I,) of a matrix (O, I) is worth."""
    weight = weight.float()
    if norms is not None:
        return (weight.abs() * norms.mean_sq.sqrt()).mean(dim=0)
    return seen.variance * weight.square().sum(dim=0) if metric == "WIFV" else seen.variance


def as_released(scores: Scores, ratio: float, geometry: Geometry) -> Cut:
    """The units that the authors' code takes away of all that compete.

    Down the list, the unit at which the cumulated weight is nearest to that of what shall stay sets the threshold, and
    goes itself.
    """
    head = 2 * geometry.head * (geometry.heads // geometry.groups + 1) // (geometry.readers + 1)  # in channels
    values = torch.cat([found.cpu() for found in scores.values()])
    units = [Unit(*module, index) for module, found in scores.items() for index in range(len(found))]
    weights = torch.tensor([head if unit.part == "head" else 1 for unit in units])
    found, order = values.sort(descending=True)
    kept = weights[order].cumsum(0)
    threshold = found[(kept - weights.sum() * (1 - ratio)).abs().argmin()]
    return Cut(frozenset(unit for unit, stays in zip(units, (values > threshold).tolist(), strict=True) if not stays))


def biases(view: StructureView, edit: Cut, means: Mapping[Module, Tensor]) -> dict[str, Tensor]:
    """The biases (O,), by their names, of matrices that lose inputs: what these gave on average, and what was there."""
    writers = {part: view.writers(part) for part in INSIDE}
    gone = {module: _gone(edit, module, view.geometry.count(module.part)) for module in means}
    found = {}
    for module, mine in gone.items():
        if not mine.any() or all(bool(gone[Module(part, module.block)].all()) for part in INSIDE):
            continue
        site, mean = writers[module.part][module.block], means[module]
        lost = view.weights[site].float() @ (mean * mine.to(mean.device).repeat_interleave(len(mean) // len(mine)))
        had = view.biases.get(site)
        found[f"{site}.bias"] = lost if had is None else lost + had.float()
    return found


def _gone(edit: Cut, module: Module, units: int) -> Tensor:
    """True (units,) for the units of a module that go."""
    gone = torch.zeros(units, dtype=torch.bool)
    gone[list(edit.gone(*module))] = True
    return gone


def _nothing(width: int, device: torch.device) -> Fluctuation:
    return Fluctuation(torch.zeros(width, device=device), torch.zeros(width, device=device), 0)


def _add(state: Fluctuation, inputs: Tensor) -> Fluctuation:
    """Add the tokens of a window (L, I)."""
    inputs = inputs.float()
    variance = inputs.var(dim=0) if len(inputs) > 1 else torch.zeros_like(state.mean)
    return _merged([state, Fluctuation(inputs.mean(dim=0), variance, len(inputs))])


def _merged(states: Sequence[Fluctuation]) -> Fluctuation:
    """Unbiased variances of parts make that of the whole (Chan et al. 1979)."""
    total = states[0]
    for other in states[1:]:
        count = total.seen + other.seen
        apart = other.mean.to(total.mean.device) - total.mean
        squares = total.variance * max(0, total.seen - 1) + other.variance.to(apart.device) * max(0, other.seen - 1)
        squares = squares + apart.square() * (total.seen * other.seen / max(1, count))
        mean = total.mean + apart * (other.seen / max(1, count))
        total = Fluctuation(mean, squares / max(1, count - 1), count)
    return total


def _add_as_released(state: Fluctuation, inputs: Tensor) -> Fluctuation:
    """The released code's running sums: both factors have the mean that includes this window, the first one is lost."""
    inputs, seen = inputs.float(), state.seen
    mean = state.mean * (seen / (seen + 1)) + inputs.mean(dim=0) / (seen + 1)
    if seen == 0:
        return Fluctuation(mean, state.variance, 1)
    squares = (inputs - mean).square().sum(dim=0)
    return Fluctuation(mean, state.variance * ((seen - 1) / seen) + squares / (seen + 1), seen + 1)


fluctuation = Statistic(_nothing, _add, merge=_merged)
"""Mean and unbiased variance of each input over all tokens."""

running_fluctuation = Statistic(_nothing, _add_as_released)
"""The same as the authors' code has it; one device sees all windows, in order."""
