"""How heavy the tail of a matrix's spectrum is: the exponent of the power law that its largest eigenvalues follow.

Shapes: N eigenvalues, ascending; C candidates for the smallest eigenvalue of the tail.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BINS = 100
"""Of the histogram whose peak says where the tail may begin."""

CHUNK = 2**22
"""Distances (candidates times eigenvalues) that are computed at once."""


def power_law_exponent(weight: Tensor) -> float:
    """PL_Alpha_Hill of WᵀW (O, I), as AlphaPruning's released code finds it (`lib/esd_utils.py`, `xmin_peak`).

    Each eigenvalue λᵢ near the peak of the histogram is tried as the beginning of a tail of n, with the exponent of
    Hill, α = 1 + n / Σⱼ log(λⱼ / λᵢ); the tail nearest to its power law (Kolmogorov-Smirnov) gives the answer. Their
    answer without any such eigenvalue is 0; a matrix with fewer than two eigenvalues above zero has none, NaN.
    """
    eigenvalues = _eigenvalues(weight).cpu()  # where histograms and running sums come out the same every time
    if len(eigenvalues) < 2:
        return math.nan
    candidates = _near_peak(eigenvalues)
    if not candidates:
        return 0.0
    logs = eigenvalues.log()[candidates.start :]
    counts = torch.arange(len(logs), 0, -1, dtype=torch.float64)  # n of each candidate
    sums = logs.flip(0).cumsum(0).flip(0)
    alphas = (1 + counts / (sums - counts * logs))[: len(candidates)]
    distances = _distances(logs.to(weight.device), alphas.to(weight.device)).cpu()
    return float(alphas[distances.argmin()])


def _eigenvalues(weight: Tensor) -> Tensor:
    """The squared singular values (N,), but for those that are zero up to rounding.

    In float64, unlike the released code: one eigenvalue more in a bin can move the peak and α with it, so that float32
    gave one random matrix 6.2 on a CPU and 6.8 on a GPU. The smaller Gram matrix gives them ten times sooner there.
    """
    wide = weight.double() if weight.shape[0] <= weight.shape[1] else weight.double().T
    eigenvalues = torch.linalg.eigvalsh(wide @ wide.T)
    return eigenvalues[eigenvalues > len(wide) * torch.finfo(torch.float64).eps * eigenvalues[-1]]


def _near_peak(eigenvalues: Tensor) -> range:
    """Which eigenvalues may begin the tail: none above 1.5 times the lower edge of the fullest bin, nor the last one.

    From below they are compared with log₁₀ of 0.95 times that edge, as in the released code, where the edge itself must
    have been meant: with an edge of 1 or less, all of the smaller eigenvalues take part.
    """
    logs = eigenvalues.log10()
    counts = torch.histc(logs, BINS, min=float(logs[0]), max=float(logs[-1]))
    peak = 10 ** torch.linspace(float(logs[0]), float(logs[-1]), BINS + 1, dtype=logs.dtype)[counts.argmax()]
    first = int(torch.searchsorted(eigenvalues, (0.95 * peak).log10()))
    behind = int(torch.searchsorted(eigenvalues, 1.5 * peak, right=True))
    return range(first, min(behind, len(eigenvalues) - 1))


def _distances(logs: Tensor, alphas: Tensor) -> Tensor:
    """The Kolmogorov-Smirnov distance (C,) of each candidate's tail from its power law, 1 where α is none.

    Args:
        logs: of the eigenvalues from the first candidate on.
        alphas: the exponent (C,) of each candidate.
    """
    count, position = len(logs), torch.arange(len(logs), device=logs.device)
    found = []
    for rows in torch.arange(len(alphas), device=logs.device).split(max(1, CHUNK // count)):
        begin = rows[:, None]
        model = 1 - ((1 - alphas[begin]) * (logs - logs[begin])).exp()  # P(λ ≤ λⱼ)
        gap = (model - (position - begin) / (count - begin)).abs()
        found.append(gap.masked_fill_(position < begin, 0).amax(dim=1))
    return torch.cat(found).masked_fill_(~(alphas > 1), 1)
