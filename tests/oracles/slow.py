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
