"""Which inputs share a group of an N:M pattern: RIA's channel permutation.

An order (I,) is the inputs, each once; M neighbours in it are a group. Shapes: O outputs, I inputs, G groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.core.pattern import NofM, keep
from harness.runtime.errors import Refusal

AT_ONCE = 1 << 24
"""Elements of the largest tensor that the values of an assignment are summed up from."""


def dealt(worth: Tensor, of: int) -> Tensor:
    """An order (I,) that deals the inputs by rising `worth` (I,) to the places of the groups, there and back.

    The first G go to the groups' first places in order, the next G to their second ones in reverse, and so on.
    """
    ranks = worth.sort(stable=True).indices.reshape(of, -1)  # (M, G)
    ranks[1::2] = ranks[1::2].flip(1)
    return ranks.T.reshape(-1)


def kept_in(order: Tensor, score: Tensor, pattern: NofM) -> Tensor:
    """Weights (O, I) kept of each group of an order: the highest scores (O, I)."""
    kept = torch.empty(score.shape, dtype=torch.bool, device=score.device)
    kept[:, order] = keep(score[:, order], pattern)
    return kept


def assigned(order: Tensor, score: Tensor, pattern: NofM) -> Tensor:
    """An order (I,) in which no exchange of inputs between the same place of groups raises the score (O, I) that stays.

    Place by place: the G inputs there are given to the groups anew by the linear sum assignment of the greatest total.

    Raises:
        Refusal: scipy, which solves the assignment, is not installed.
    """
    try:
        from scipy.optimize import linear_sum_assignment  # comes with lm-eval; nothing else needs it
    except ModuleNotFoundError:
        raise Refusal("method.lsa=true needs scipy; install it (pip install scipy) or take method.lsa=false") from None
    groups = order.reshape(-1, pattern.of).clone()  # (G, M)
    for place in range(pattern.of):
        value = _values(groups, place, score, pattern)
        _, chosen = linear_sum_assignment(value.cpu().numpy(), maximize=True)
        groups[:, place] = groups[torch.from_numpy(chosen).to(groups.device), place]
    return groups.reshape(-1)


def _values(groups: Tensor, place: int, score: Tensor, pattern: NofM) -> Tensor:
    """The score that stays of each group (G, 1) were its input at `place` that of another group (1, G).

    With t the N-th of the other scores of a group, x brings max(x, t) to their N − 1 best.
    """
    others = torch.cat([groups[:, :place], groups[:, place + 1 :]], dim=1)  # (G, M − 1)
    candidates = score[:, groups[:, place]]  # (O, G)
    value = torch.zeros(len(groups), len(groups), dtype=torch.float64, device=score.device)
    for start in range(0, len(groups), step := max(1, AT_ONCE // candidates.numel())):
        some = slice(start, start + step)
        best = score[:, others[some]].sort(dim=2, descending=True).values  # (O, some, M − 1)
        threshold = best[:, :, pattern.keep - 1]
        brought = torch.maximum(candidates[:, None, :], threshold[:, :, None]).sum(dim=0, dtype=torch.float64)
        value[some] = brought + best[:, :, : pattern.keep - 1].sum(dim=(0, 2), dtype=torch.float64)[:, None]
    return value
