"""Why a matrix has more or fewer zeros than were asked of it, counted from its weights before and after.

A cause explains no more zeros than it can: those that stand in excess of the quota even if every group of weights that
a method may compare (a row, columns, M weights) lost exactly its share. What no cause explains is the method's own.
Shapes: O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.core.pattern import NofM, Pattern
from harness.core.tolerance import TOLERANCE

CAUSES = {
    "zero": "weights that were zero before",
    "unseen": "inputs that calibration never saw",
    "ties": "equal magnitudes at the threshold",
    "quotas": "quotas in whole weights of a row or column",
}
"""Causes that can be counted, in that order."""


@dataclass(frozen=True)
class Counts:
    """Counts of one matrix: weights, those asked to be zero, those that are; the excess that each cause explains.

    `broken` weights are not finite, `masked` ones are there though their mask says that they went.
    """

    parameters: int
    asked: float
    zeros: int
    broken: int
    masked: int
    excess: Mapping[str, float]


@torch.no_grad()
def counted(dense: Tensor, pruned: Tensor, kept: Tensor, pattern: Pattern, unseen: Tensor | None) -> Tensor:
    """The numbers of `Counts` (4 + causes,) on the device, which nobody waits for; causes where they matter.

    Args:
        dense: the weight (O, I) before; if it is the pruned one itself, nothing is known of it.
        unseen: True (I,) for inputs that calibration never saw, None where that is not known.
    """
    gone = pruned == 0
    facts = [gone.sum(), (~torch.isfinite(pruned)).sum(), (~gone & ~kept).sum()]
    found = torch.stack([facts[0].new_tensor(gone.numel()), *facts]).double()
    left = found[1] - pattern.sparsity * gone.numel()
    if dense.data_ptr() == pruned.data_ptr() or (not pruned.is_cuda and _is_little(found, pattern)):
        return torch.cat([found, found.new_zeros(len(CAUSES))])
    explained = []
    for most in _at_most(dense, gone, pattern, unseen):
        explained.append(left.clamp(min=most.clamp(max=0), max=most.clamp(min=0)))
        left = left - explained[-1]
    return torch.cat([found, torch.stack(explained)])


def _is_little(found: Tensor, pattern: Pattern) -> bool:
    parameters, zeros, *_ = found.tolist()
    return abs(zeros / parameters - pattern.sparsity) <= TOLERANCE / 2


def read(found: Mapping[str, Tensor], asked: Mapping[str, Pattern]) -> dict[str, Counts]:
    """The counts of every matrix from what `counted` gave, and its pattern."""
    answer = {}
    for site, numbers in found.items():
        parameters, zeros, broken, masked, *excess = numbers.tolist()
        wanted = asked[site].sparsity * parameters
        explained = dict(zip(CAUSES, excess, strict=True))
        answer[site] = Counts(int(parameters), wanted, int(zeros), int(broken), int(masked), explained)
    return answer


def _at_most(dense: Tensor, gone: Tensor, pattern: Pattern, unseen: Tensor | None) -> Iterable[Tensor]:
    """Weights that each cause explains: too many, or too few where it is negative."""
    given = gone & (dense == 0)
    before = _surplus(given, pattern)
    yield before
    with_unseen = given if unseen is None else given | (unseen & gone.all(dim=0))
    yield _surplus(with_unseen, pattern) - before
    yield _ties(dense.abs(), gone, pattern)
    yield _rounded(gone, pattern)


def _surplus(given: Tensor, pattern: Pattern) -> Tensor:
    """The most zeros beyond the quota that these zeros force on groups of rows, of columns, or of M weights."""
    if isinstance(pattern, NofM):
        if given.shape[1] % pattern.of:
            return given.new_zeros((), dtype=torch.float64)
        return (given.reshape(-1, pattern.of).sum(dim=1) - (pattern.of - pattern.keep)).clamp(min=0).sum().double()
    sides = [
        (given.sum(dim=side, dtype=torch.float64) - pattern.sparsity * given.shape[side]).clamp(min=0).sum()
        for side in (0, 1)
    ]
    return torch.maximum(sides[0], sides[1])


def _ties(magnitude: Tensor, gone: Tensor, pattern: Pattern) -> Tensor:
    """The weights of the largest magnitude that went but for one, where all that are smaller went and none larger."""
    if isinstance(pattern, NofM):
        return gone.new_zeros((), dtype=torch.float64)
    most = magnitude.masked_fill(~gone, -1).amax(dim=1)  # (O,) of what went
    least = magnitude.masked_fill(gone, torch.inf).amin(dim=1)  # (O,) of what stayed
    matrix = (magnitude == most.max()).sum() - 1
    rows = ((magnitude == most[:, None]).sum(dim=1) - 1).clamp(min=0).sum()
    by_row = torch.where((most < least).all(), rows, 0)
    return torch.where(most.max() < least.min(), matrix, by_row).clamp(min=0).double()


def _rounded(gone: Tensor, pattern: Pattern) -> Tensor:
    """Less or more than asked where each row (or column) of n lost ⌊n·s⌋ weights, or that and the threshold itself."""
    if isinstance(pattern, NofM):
        return gone.new_zeros((), dtype=torch.float64)
    total = gone.sum() - pattern.sparsity * gone.numel()
    sides = []
    for side in (0, 1):
        size, groups = gone.shape[1 - side], gone.shape[side]
        zeros, floor = gone.sum(dim=1 - side), int(size * pattern.sparsity)
        share = size * pattern.sparsity - floor
        under = torch.where((zeros >= floor).all(), -groups * share, 0.0)
        over = torch.where((zeros <= floor + 1).all(), groups * (1 - share), 0.0)
        sides.append(torch.where(total < 0, under, over).double())
    return torch.where(sides[0].abs() > sides[1].abs(), sides[0], sides[1])


def difference(
    asked: float, achieved: float, sites: Mapping[str, Counts], *, method: str, allocator: str, recovery: str
) -> str:
    """The sentence that says by how much a model misses its sparsity and why; empty within `TOLERANCE`.

    Args:
        asked: the fraction of zeros asked of the blocks in scope, `achieved` the one that they have at the end.
        sites: what pruning left of every matrix in scope.
        method: the names of the components, which answer for what nothing else explains.
    """
    total = sum(one.parameters for one in sites.values())
    if not total or abs(achieved - asked) <= TOLERANCE:
        return ""
    wanted = sum(one.asked for one in sites.values()) / total
    left = sum(one.zeros for one in sites.values()) / total
    parts = [(f"what the allocator '{allocator}' asks of the matrices", wanted - asked)]
    rest = left - wanted
    for cause, words in CAUSES.items():
        share = sum(one.excess[cause] for one in sites.values()) / total
        where = sum(abs(one.excess[cause]) >= 1 for one in sites.values())
        parts.append((f"{words} (in {where} of {len(sites)} matrices)", share))
        rest -= share
    parts.append((f"the method '{method}' itself, for the weights show no other cause", rest))
    parts.append((f"the recovery '{recovery}'", achieved - left))
    said = [f"{share:+.4f} by {words}" for words, share in parts if abs(share) >= TOLERANCE / 10]
    return f"achieved sparsity {achieved:.4f} where {asked:g} was asked: {', '.join(said)}"
