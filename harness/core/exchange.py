"""DSnoT's exchanges: in every row at once one weight comes back and another goes, cycle after cycle.

Shapes: O outputs, I inputs; what is said of each row is (O, 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Candidates(Protocol):
    """Who goes next."""

    def take(self, from_back: Tensor, grown: Tensor) -> tuple[Tensor, Tensor]:
        """The input of each row that goes next, and whether there is one.

        Args:
            from_back: which end of its list a row looks at.
            grown: the input that comes back.
        """
        ...


@dataclass
class Ends:
    """A list of inputs (O, I) for each row that is taken from both ends: `front` is the next place there, `back` here.

    The candidates lie in front of `until` and behind `behind`; what is between them is no candidate.
    """

    listed: Tensor
    front: Tensor
    back: Tensor
    until: Tensor
    behind: Tensor

    def take(self, from_back: Tensor, grown: Tensor | None = None) -> tuple[Tensor, Tensor]:
        place = torch.where(from_back, self.back, self.front)
        found = torch.where(from_back, place > self.behind, place < self.until)
        self.back = self.back - from_back.long()
        self.front = self.front + (~from_back).long()
        return self.listed.gather(1, place.clamp(0, self.listed.shape[1] - 1)), found


@dataclass
class Groups:
    """The kept input with the least score in the group of the one that comes back, each once."""

    score: Tensor
    of: int

    def take(self, from_back: Tensor, grown: Tensor) -> tuple[Tensor, Tensor]:
        group = grown - grown % self.of + torch.arange(self.of, device=grown.device)
        least, place = self.score.gather(1, group).topk(1, dim=1, largest=False)  # of equals the released one
        index = group.gather(1, place)
        self.score.scatter_(1, index, torch.inf)
        return index, torch.isfinite(least)


def growing(growth: Tensor) -> Ends:
    """Candidates to come back: by rising `growth` (O, I), which is zero for what is kept; NaN is no candidate.

    The sort puts NaN behind all numbers.
    """
    width = growth.shape[1]
    negative = (growth < 0).sum(dim=1, keepdim=True)
    positive = (growth > 0).sum(dim=1, keepdim=True)
    return Ends(
        growth.sort(dim=1, stable=True).indices,
        torch.zeros_like(negative), torch.full_like(negative, width - 1), negative, width - 1 - positive,
    )  # fmt: skip


def in_rows(expected: Tensor, score: Tensor, kept: Tensor) -> Ends:
    """Candidates to go: kept ones by rising score, of negative `expected` from the front, of positive from the back.

    Between them lies, as in the released code, the weight of the least score over and over.
    """
    rising = score.masked_fill(~kept, torch.inf).sort(dim=1, stable=True).indices
    of_kept = kept.gather(1, rising)
    moved = expected.gather(1, rising)
    negative, positive = (moved < 0) & of_kept, (moved > 0) & of_kept
    front, back = (mask.logical_not().byte().sort(dim=1, stable=True).indices for mask in (negative, positive))
    width, until, behind = (mask.sum(dim=1, keepdim=True) for mask in (kept, negative, positive))
    place = torch.arange(kept.shape[1], device=kept.device)[None]
    from_back = back.gather(1, (width - 1 - place).clamp(min=0))
    where = torch.where(place < until, front, torch.where((place >= width - behind) & (place < width), from_back, 0))
    return Ends(rising.gather(1, where), torch.zeros_like(width), width - 1, until, width - 1 - behind)


def exchange(
    kept: Tensor, expected: Tensor, growth: Tensor, error: Tensor, going: Candidates, *,
    cycles: int, threshold: float, same_sign: bool, released: bool,
) -> Tensor:  # fmt: skip
    """Algorithm 1 of DSnoT: the mask (O, I) after the cycles.

    Args:
        expected: what each weight contributes to its row (O, I).
        growth: what pruned weights are brought back by (O, I), zero for kept ones.
        error: the sum of `expected` over the pruned weights.
        going: who goes for what comes back.
        same_sign: end a row before its error changes its sign.
        released: write the state of rows that have ended as well, and take what is no candidate, as the code does.
    """
    kept, first, active = kept.clone(), error.sign(), torch.ones_like(error, dtype=torch.bool)
    coming = growing(growth if released else growth.nan_to_num(0.0))
    for _ in range(cycles):
        comes, there = coming.take(error > 0)
        goes, also = going.take(error < 0, comes)
        after = error + expected.gather(1, goes) - expected.gather(1, comes)
        active = active & (error.abs() > threshold)
        if same_sign:
            active = active & (first == after.sign())
        if released:
            kept.scatter_(1, goes, ~active)
            kept.scatter_(1, comes, active)
        else:
            active = active & there & also
            kept.scatter_(1, goes, kept.gather(1, goes) & ~active)
            kept.scatter_(1, comes, kept.gather(1, comes) | active)
        error = torch.where(active, after, error)
        if not (active.is_cuda or active.any()):  # nobody waits for a GPU to say so
            break
    return kept
