"""Slow and obvious versions of what the harness computes, from the equations of the papers, in float64.

Shapes: O outputs, I inputs. Each takes and gives plain lists or float64 tensors; none knows a trick.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def magnitude_kept(weight: Tensor, sparsity: float) -> Tensor:
    """All that is larger than the ⌊n·s⌋-th smallest magnitude (counted from zero), so all its ties go with it."""
    ordered = sorted(abs(float(w)) for w in weight.flatten())
    threshold = ordered[int(len(ordered) * sparsity)]
    return torch.tensor([[abs(float(w)) > threshold for w in row] for row in weight])


def wanda_kept(weight: Tensor, tokens: Tensor, sparsity: float) -> Tensor:
    """Eq. 1 of Wanda: |w| · ‖x‖₂, the ⌊I·s⌋ lowest of each row go, of equals the first."""
    norms = [float(column.double().norm()) for column in tokens.T]
    kept = torch.ones(weight.shape, dtype=torch.bool)
    for o, row in enumerate(weight.double()):
        order = sorted(range(len(row)), key=lambda i: (abs(float(row[i])) * norms[i], i))
        for i in order[: int(len(row) * sparsity)]:
            kept[o, i] = False
    return kept


def best_of_group(scores: Sequence[float], count: int) -> set[int]:
    """The `count` positions with the largest sum of scores, by trying all of them."""
    return set(
        max(itertools.combinations(range(len(scores)), count), key=lambda chosen: sum(scores[i] for i in chosen))
    )


def without_first(inverse: Tensor) -> Tensor:
    """The inverse of a matrix without its first row and column, from its inverse: one step of Gaussian elimination."""
    return (inverse - torch.outer(inverse[:, 0], inverse[0]) / inverse[0, 0])[1:, 1:]


def sparsegpt(
    weight: Tensor, gram: Tensor, *, damping: float, blocksize: int, sparsity: float = 0.0, keep: int = 0, of: int = 0
) -> tuple[Tensor, Tensor]:
    """Algorithm 1 of SparseGPT, a column at a time, every inverse made explicitly; the weight and what was kept.

    The remaining columns F at column i have the inverse (H_F)⁻¹, of which the optimal brain surgeon takes
    error = w²/(2 [(H_F)⁻¹]₀₀) and update = −w/[(H_F)⁻¹]₀₀ · [(H_F)⁻¹]₀. A column block picks its zeros when it begins.
    """
    weight, gram = weight.double().clone(), gram.double()
    rows, columns = weight.shape
    dead = gram.diagonal() == 0
    weight[:, dead] = 0
    hessian = gram + torch.diag(dead.double())
    hessian = hessian + damping * hessian.diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    inverses = [torch.linalg.inv(hessian)]
    for _ in range(columns - 1):
        inverses.append(without_first(inverses[-1]))
    kept = torch.ones(rows, columns, dtype=torch.bool)
    for i in range(columns):
        if not of and i % blocksize == 0:
            block = range(i, min(i + blocksize, columns))
            score = torch.stack([weight[:, j] ** 2 / inverses[j][0, 0] for j in block], dim=1)
            threshold = sorted(score.flatten().tolist())[int(score.numel() * sparsity)]
            kept[:, block.start : block.stop] = score > threshold
        if of and i % of == 0:
            for o in range(rows):
                scores = [float(weight[o, j] ** 2 / inverses[j][0, 0]) for j in range(i, i + of)]
                stay = best_of_group(scores, keep)
                kept[o, i : i + of] = torch.tensor([j in stay for j in range(of)])
        for o in range(rows):
            if not kept[o, i]:
                weight[o, i:] -= weight[o, i] / inverses[i][0, 0] * inverses[i][0]
                weight[o, i] = 0
    return weight, kept


def best_levels(
    proposal: Mapping[str, float], widths: Mapping[str, int], levels: Sequence[int], of: int, wanted: int
) -> tuple[int, dict[int, float]]:
    """The least miss of the wanted sum of kept weights, and the least distortion for every sum: by trying all."""
    distortions: dict[int, float] = {}
    for assignment in itertools.product(levels, repeat=len(widths)):
        chosen = dict(zip(widths, assignment, strict=True))
        kept = kept_by(chosen, widths)
        distortions[kept] = min(distortions.get(kept, float("inf")), distortion(chosen, proposal, widths, of))
    return min(abs(kept - wanted) for kept in distortions), distortions


def kept_by(levels: Mapping[str, int], widths: Mapping[str, int]) -> int:
    return sum(widths[site] * level for site, level in levels.items())


def distortion(levels: Mapping[str, int], proposal: Mapping[str, float], widths: Mapping[str, int], of: int) -> float:
    """How far an assignment is from the proposal: squares, weighted by size."""
    return sum(widths[site] * (1 - level / of - proposal[site]) ** 2 for site, level in levels.items())


def strongest(score: Tensor, count: int) -> Tensor:
    """The `count` largest of a matrix (O, I), by sorting."""
    kept = torch.zeros(score.numel(), dtype=torch.bool)
    kept[sorted(range(score.numel()), key=lambda i: float(score.flatten()[i]))[score.numel() - count :]] = True
    return kept.reshape(score.shape)


def strongest_of_groups(score: Tensor, keep: int, of: int) -> Tensor:
    """The `keep` largest of every `of` along a row."""
    kept = torch.zeros_like(score, dtype=torch.bool)
    for o, row in enumerate(score.tolist()):
        for start in range(0, len(row), of):
            kept[o, [start + i for i in best_of_group(row[start : start + of], keep)]] = True
    return kept


def least_squares(weight: Tensor, gram: Tensor, kept: Tensor) -> Tensor:
    """argmin tr((W − B) G (W − B)ᵀ) over B (O, I) that are zero outside `kept`, an output at a time, solved exactly."""
    best = torch.zeros_like(weight.double())
    for o, stay in enumerate(kept):
        at = stay.nonzero().flatten()
        best[o, at] = torch.linalg.solve(gram.double()[at][:, at], (weight.double()[o] @ gram.double())[at])
    return best


def alps(weight: Tensor, gram: Tensor, *, count: int, keep: int = 0, of: int = 0) -> tuple[Tensor, Tensor]:
    """ALPS (algorithm 1), inputs down and outputs across → B (O, I) before the refit, and its mask.

    G gets 1 % of its mean diagonal, then a unit diagonal; W₀ = (W n)ᵀ. The `count` largest stay, or `keep` of `of`.
    """

    def top(matrix: Tensor) -> Tensor:
        score = matrix.T.abs()
        return (strongest_of_groups(score, keep, of) if of else strongest(score, count)).T

    gram = gram.double() + 0.01 * gram.double().diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    n = gram.diagonal().sqrt() + 1e-8
    gram = gram / torch.outer(n, n)
    start = (weight.double() * n).T
    b, d, v, rho, raised = start, start * top(start), torch.zeros_like(start), 0.1, False
    before = d == 0
    for t in range(300):
        b = torch.linalg.solve(gram + rho * torch.eye(len(gram), dtype=torch.float64), gram @ start - v + rho * d)
        d = (b + v / rho) * top(b + v / rho)
        v = v + rho * (b - d)
        if t % 3 != 2:
            continue
        changed = int(((d == 0) != before).sum())
        before = d == 0
        if changed / count > 0.005:
            rho, raised = rho * (1.3 if changed / count > 0.1 else 1.2), True
        elif changed:
            if raised:
                rho *= 1.1
            else:
                rho, b, d, v = rho / 5, start, start * top(start), torch.zeros_like(start)
        elif raised:
            break
        else:
            rho /= 5
        if t >= 30 and changed / count < 3e-4:
            break
    kept = top(b)
    return ((b * kept).T / n), kept.T


def admm(
    weight: Tensor, gram: Tensor, *, sparsity: float, gradual: bool = True, keep: int = 0, of: int = 0
) -> tuple[Tensor, Tensor]:
    """Twenty steps of ADMM with ρ = 1, a unit diagonal and then a ridge of 0.1; the mask fixed after fifteen."""
    gram = gram.double()
    n = gram.diagonal().sqrt() + 1e-8
    gram = gram / torch.outer(n, n)
    eye = torch.eye(len(gram), dtype=torch.float64)
    gram = gram + 0.1 * gram.diagonal().mean() * eye
    dense = (weight.double() * n).T
    w, u, kept = dense, torch.zeros_like(dense), torch.ones_like(dense, dtype=torch.bool)
    for t in range(20):
        if t < 15:
            now = sparsity * (1 - (1 - (t + 1) / 15) ** 3) if gradual else sparsity
            score = (w + u).T.abs()
            if of:
                score = score.masked_fill(strongest_of_groups(score, keep, of), torch.inf)
            kept = strongest(score, score.numel() - int(score.numel() * now)).T
        z = (w + u) * kept
        u = u + w - z
        w = torch.linalg.solve(gram + eye, gram @ dense + z - u)
    return ((w + u) * kept).T / n, kept.T
