"""SparseSwaps' exchanges: in every row a pruned and a kept weight change places as long as the squared error falls.

With d the pruned part of a row w, c = G d and the loss dᵀ G d, bringing back i and removing j changes the loss by
(w_i² G_ii − 2 w_i c_i) + (w_j² G_jj + 2 w_j c_j) − 2 w_i w_j G_ij.

Shapes: O outputs, I inputs, R rows at once, S candidates of each side.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.core.linalg import is_short_on_gpu
from harness.core.pattern import NofM, Pattern
from harness.core.products import Multiplier

ELEMENTS = {"cuda": 1 << 28, "cpu": 1 << 24}
"""Of the largest tensor that rows at once may take: their pairs or their inputs."""
ROUNDING = 1e-5
"""A gain has to be at least this share of its own terms, which in float32 carry so much error."""


def swapped(
    weight: Tensor, kept: Tensor, gram: Tensor, pattern: Pattern, *, rounds: int, swaps: int, shortlist: int
) -> Tensor:
    """The mask (O, I) after the exchanges, with as many kept weights in each row (of N:M: in each group) as before.

    Args:
        gram: the Gram matrix (I, I) of the inputs, to any scale.
        rounds: how often the candidates are chosen anew, from a fresh c.
        swaps: exchanges of each row between two choices; all are of the pair that gains most among the candidates.
        shortlist: candidates of each side (of N:M: groups), the best by the terms of their own; 0: all.
    """
    refined, short = kept.clone(), is_short_on_gpu(weight)
    times = Multiplier(gram, "split" if short else "float32")
    of = pattern.of if isinstance(pattern, NofM) else 0
    size = min(shortlist or weight.shape[1], weight.shape[1])
    a_row = max(weight.shape[1] * max(of, 1), size * (of * of if of else size))
    for start in range(0, len(weight), step := max(1, ELEMENTS[weight.device.type] // a_row)):
        rows = slice(start, start + step)
        part, mask = weight[rows].float(), refined[rows]  # the mask is a view
        for _ in range(rounds):
            choice = _Grouped(part, mask, gram, times, of, size) if of else _Rows(part, mask, gram, times, size)
            moved = choice.exchange(swaps)
            if not (moved.is_cuda or moved.any()):  # nobody waits for a GPU to say so
                break
    return refined


def working_bytes(outputs: int, inputs: int, shortlist: int, *, cuda: bool) -> int:
    """About what `swapped` takes beside the matrix and its mask: rows at once, six times as they are or as pairs."""
    size = min(shortlist or inputs, inputs)
    largest = ELEMENTS["cuda" if cuda else "cpu"]
    rows = min(outputs, max(1, largest // max(inputs, size * size)))
    return rows * 4 * 6 * (inputs + size * size)


def _terms(weight: Tensor, kept: Tensor, pull: Tensor, diagonal: Tensor) -> tuple[Tensor, Tensor]:
    """The effect of each weight (R, I) coming back or going by itself, and the size of what it is summed from."""
    square, double = weight**2 * diagonal, 2 * weight * pull
    return torch.where(kept, square + double, square - double), square + double.abs()


class _Rows:
    """Candidates of rows without groups: the S best of each side, and all their pairs."""

    def __init__(self, weight: Tensor, kept: Tensor, gram: Tensor, times: Multiplier, size: int) -> None:
        self.kept, self.gram = kept, gram
        pull = times(weight * ~kept)  # c (R, I)
        change, _ = _terms(weight, kept, pull, gram.diagonal())
        self.sides = [self._side(weight, pull, change.masked_fill(mask, torch.inf), size) for mask in (kept, ~kept)]

    def _side(self, weight: Tensor, pull: Tensor, change: Tensor, size: int) -> tuple[Tensor, ...]:
        """Index, weight and c of the candidates (R, S), and where there is none because the side is too small."""
        best, index = change.topk(size, dim=1, largest=False)
        return index, weight.gather(1, index), pull.gather(1, index), torch.isinf(best)

    def exchange(self, swaps: int) -> Tensor:
        """Make up to so many exchanges a row, changing the mask; whether any was made in each (R, 1)."""
        (back, w_back, c_back, no_back), (going, w_going, c_going, no_going) = self.sides
        if self.kept.is_cuda:
            from harness.core.swaps_gpu import WIDEST, exchange  # Triton comes with torch's CUDA builds only

            if back.shape[1] <= WIDEST:
                return exchange(self.sides, self.gram, self.kept, swaps)
        pairs = 2 * w_back[:, :, None] * w_going[:, None, :] * self.gram[back[:, :, None], going[:, None, :]]
        diagonal, moved = self.gram.diagonal(), torch.zeros_like(no_back[:, :1])
        for _ in range(swaps):
            a, a_size = _terms(w_back, torch.zeros_like(no_back), c_back, diagonal[back])
            b, b_size = _terms(w_going, torch.ones_like(no_going), c_going, diagonal[going])
            a, b = a.masked_fill(no_back, torch.inf), b.masked_fill(no_going, torch.inf)
            best, of_back = (b[:, None, :] - pairs).min(dim=2)
            change, i = (a + best).min(dim=1, keepdim=True)
            j = of_back.gather(1, i)
            gains = change < -ROUNDING * (a_size.gather(1, i) + b_size.gather(1, j))
            comes, goes = back.gather(1, i), going.gather(1, j)
            self.kept.scatter_(1, comes, self.kept.gather(1, comes) | gains)
            self.kept.scatter_(1, goes, self.kept.gather(1, goes) & ~gains)
            w_i, w_j = w_back.gather(1, i) * gains, w_going.gather(1, j) * gains
            c_back = c_back - w_i * self.gram[comes, back] + w_j * self.gram[goes, back]
            c_going = c_going - w_i * self.gram[comes, going] + w_j * self.gram[goes, going]
            no_back = no_back.scatter(1, i, no_back.gather(1, i) | gains)
            no_going = no_going.scatter(1, j, no_going.gather(1, j) | gains)
            moved |= gains
            if not (gains.is_cuda or gains.any()):
                break
        return moved


class _Grouped:
    """Candidates of N:M: the S groups of each row whose best pair gains most, and all pairs in them."""

    def __init__(self, weight: Tensor, kept: Tensor, gram: Tensor, times: Multiplier, of: int, size: int) -> None:
        self.kept, self.gram, self.of = kept, gram, of
        pull = times(weight * ~kept)
        inputs = torch.arange(weight.shape[1], device=weight.device).reshape(-1, of)  # (I / M, M)
        within = gram[inputs[:, :, None], inputs[:, None, :]]  # (I / M, M, M)
        shape = (len(weight), -1, of)
        best = _best_pairs(weight.reshape(shape), kept.reshape(shape), pull.reshape(shape), within[None])[0]
        groups = best.topk(min(size, best.shape[1]), dim=1, largest=False).indices  # (R, S)
        self.index = inputs[groups].flatten(1)  # (R, S · M)
        self.within = within[groups]  # (R, S, M, M)
        self.weight, self.pull = weight.gather(1, self.index), pull.gather(1, self.index)

    def exchange(self, swaps: int) -> Tensor:
        """Make up to so many exchanges a row, changing the mask; whether any was made in each (R, 1)."""
        moved = torch.zeros_like(self.kept[:, :1])
        shape = (len(self.index), -1, self.of)
        for _ in range(swaps):
            mask = self.kept.gather(1, self.index)
            best, size, pair = _best_pairs(
                self.weight.view(shape), mask.view(shape), self.pull.view(shape), self.within
            )
            change, group = best.min(dim=1, keepdim=True)
            gains = change < -ROUNDING * size.gather(1, group)
            pair = pair.gather(1, group)
            i, j = group * self.of + pair // self.of, group * self.of + pair % self.of
            comes, goes = self.index.gather(1, i), self.index.gather(1, j)
            self.kept.scatter_(1, comes, self.kept.gather(1, comes) | gains)
            self.kept.scatter_(1, goes, self.kept.gather(1, goes) & ~gains)
            w_i, w_j = self.weight.gather(1, i) * gains, self.weight.gather(1, j) * gains
            self.pull = self.pull - w_i * self.gram[comes, self.index] + w_j * self.gram[goes, self.index]
            moved |= gains
            if not (gains.is_cuda or gains.any()):
                break
        return moved


def _best_pairs(weight: Tensor, kept: Tensor, pull: Tensor, within: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of groups (R, S, M) with the Gram matrices within (·, S, M, M): the least change, the size of its terms, and
    i · M + j of its pair (R, S)."""
    change, size = _terms(weight, kept, pull, within.diagonal(dim1=2, dim2=3))
    comes, goes = change.masked_fill(kept, torch.inf), change.masked_fill(~kept, torch.inf)
    pairs = 2 * weight[:, :, :, None] * weight[:, :, None, :] * within
    best, pair = (comes[:, :, :, None] + goes[:, :, None, :] - pairs).flatten(2).min(dim=2, keepdim=True)
    of = weight.shape[2]
    sizes = size.gather(2, pair // of) + size.gather(2, pair % of)
    return best.squeeze(2), sizes.squeeze(2), pair.squeeze(2)
