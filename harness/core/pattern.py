"""Where zeros may stand: patterns, and the one function that chooses zeros.

Shapes: O outputs, I inputs. Sparsity is the fraction of zeros; N of `NofM` counts the weights that are *kept*.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from harness.runtime.errors import UserError

Group = Literal["row", "matrix"]
"""The weights that compete with one another: those of one output, or those of the whole matrix."""

Quota = Literal["exact", "threshold", "loose"]
"""`exact` removes ⌊n·s⌋ of a group of n (Wanda); `threshold` removes all scores up to and including the ⌊n·s⌋-th,
counted from zero, so one more per group and all ties (magnitude, SparseGPT); `loose` is `exact` with all ties of the
last one that goes: for masks that an iteration replaces, since nothing has to be counted."""


@dataclass(frozen=True)
class Unstructured:
    """Zeros anywhere."""

    sparsity: float

    def __str__(self) -> str:
        return "unstructured"


@dataclass(frozen=True)
class NofM:
    """At most `keep` nonzeros in every `of` consecutive weights along the input dimension."""

    keep: int
    of: int

    @property
    def sparsity(self) -> float:
        return 1 - self.keep / self.of

    def __str__(self) -> str:
        return f"{self.keep}of{self.of}"


Pattern = Unstructured | NofM


def read_n_of_m(value: object) -> tuple[int, int] | None:
    """N and M of a pattern that is written NofM, such as 2of4, whatever their sizes; None for anything else."""
    match = re.fullmatch(r"([0-9]{1,9})of([0-9]{1,9})", str(value).strip())
    return (int(match[1]), int(match[2])) if match else None


def parse_pattern(value: object) -> Pattern:
    """`0.7` is a fraction of zeros, `2of4` keeps 2 of every 4.

    Raises:
        UserError: neither form, or out of range.
    """
    if found := read_n_of_m(value):
        keep, of = found
        if not 0 < keep <= of:
            raise UserError(
                f"sparsity={value} keeps {keep} of every {of}; write NofM with 0 < N <= M, for example 2of4."
            )
        return NofM(keep, of)
    try:
        sparsity = float(str(value))
    except ValueError:
        raise UserError(f"sparsity={value} is neither a fraction such as 0.7 nor a pattern such as 2of4.") from None
    if not 0 <= sparsity < 1:
        raise UserError(f"sparsity={value} is not a fraction of zeros; it has to be at least 0 and below 1.")
    return Unstructured(sparsity)


def keep(
    score: Tensor,
    pattern: Pattern,
    group: Group = "row",
    quota: Quota = "exact",
    smallest: Callable[[Tensor, int], Tensor] | None = None,
) -> Tensor:
    """Choose what stays: the highest scores (O, I) of each group.

    Args:
        smallest: gives the score (1, 1) of a rank in the whole matrix, where its order is known already.

    Returns:
        Boolean (O, I), True where a weight is kept. Ties go to the later column under `exact` and for N:M.
    """
    if isinstance(pattern, NofM):
        return _keep_n_of_m(score, pattern)
    if pattern.sparsity == 0:
        return torch.ones_like(score, dtype=torch.bool)
    groups = score.reshape(1, -1) if group == "matrix" else score
    removed = int(groups.shape[1] * pattern.sparsity)  # floor in double precision, as in the authors' codes
    if removed >= groups.shape[1]:
        return torch.zeros_like(score, dtype=torch.bool)
    if quota == "threshold":
        find = smallest if smallest and group == "matrix" else _smallest
        return (groups > find(groups, removed + 1)).reshape(score.shape)
    if quota == "loose" and removed:
        return (groups > _smallest(groups, removed)).reshape(score.shape)
    return _drop_lowest(groups, removed).reshape(score.shape)


def _smallest(groups: Tensor, rank: int) -> Tensor:
    """The value (groups, 1) of this rank, counted from one, in every row; nothing is sorted."""
    if groups.is_cuda:
        from harness.core.select_gpu import smallest  # Triton comes with torch's CUDA builds only

        return smallest(groups, rank)
    return groups.kthvalue(rank, dim=1, keepdim=True).values


def _keep_n_of_m(score: Tensor, pattern: NofM) -> Tensor:
    groups = score.reshape(-1, pattern.of)
    column = torch.arange(pattern.of, device=score.device)
    rank = torch.zeros(groups.shape, dtype=torch.uint8 if pattern.of < 256 else torch.int64, device=score.device)
    for k in range(pattern.of):
        other = groups[:, k : k + 1]
        rank += (other < groups) | ((other == groups) & (k < column))
    return (rank >= pattern.of - pattern.keep).reshape(score.shape)


def _drop_lowest(groups: Tensor, count: int) -> Tensor:
    """False for the `count` lowest of every row, of equal ones the earliest; nothing is sorted."""
    if count == 0:
        return torch.ones_like(groups, dtype=torch.bool)
    if groups.is_cuda:
        from harness.core.select_gpu import WIDEST, keep_rows

        if groups.shape[1] <= WIDEST:
            return keep_rows(groups, count)
    threshold = _smallest(groups, count)
    above, equal = groups > threshold, groups == threshold
    going = count - groups.shape[1] + (above | equal).sum(dim=1, keepdim=True)  # of those equal to the threshold
    if groups.is_cuda or bool((equal.sum(dim=1, keepdim=True) > going).any()):
        return above | (equal & (equal.cumsum(dim=1) > going))
    return above


PERMUTED = " permuted"
"""The suffix of a pattern's name that holds in another order of the inputs than their own."""


def satisfies(weight: Tensor, pattern: Pattern, order: Tensor | None = None) -> bool:
    """Return whether the zeros of `weight` (O, I) obey an N:M pattern; every matrix obeys the unstructured one.

    Args:
        order: the inputs (I,), each once, in the order in which they make the groups; None is their own.
    """
    if isinstance(pattern, Unstructured):
        return True
    nonzero = weight != 0
    if order is not None:
        inputs = torch.arange(weight.shape[1], device=order.device)
        if order.shape != inputs.shape or not torch.equal(order.sort().values.to(inputs.dtype), inputs):
            return False
        nonzero = nonzero[:, order.to(nonzero.device)]
    return bool((nonzero.reshape(-1, pattern.of).sum(dim=1) <= pattern.keep).all())


def lowest(scores: Tensor, count: int) -> Tensor:
    """True for the `count` lowest of all scores (O, I), of equal ones the earliest."""
    if count >= scores.numel():
        return torch.ones_like(scores, dtype=torch.bool)
    return ~_drop_lowest(scores.reshape(1, -1), count).reshape(scores.shape)


def misfit(pattern: Pattern, shape: tuple[int, int]) -> str | None:
    """Why a matrix (O, I) cannot carry the pattern, or None."""
    if isinstance(pattern, NofM) and shape[1] % pattern.of:
        return f"its input width {shape[1]} is not divisible by {pattern.of}, as the pattern {pattern} needs"
    return None
