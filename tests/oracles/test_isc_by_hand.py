"""ISC against a slow version from its equation, with every inverse of the columns that are left made from nothing."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from helpers import hessian, inputs, normal, seen_by
from slow import best_of_group
from torch import Tensor

from harness.core.linalg import damped_inverse
from harness.core.pattern import NofM, Unstructured
from harness.core.statistic import gram
from harness.methods.isc import ISC

Variant = Literal["default", "released"]
both_variants = pytest.mark.parametrize("variant", ["default", "released"])


def slow(
    weight: Tensor, gram: Tensor, variant: Variant, *, blocksize: int, sparsity: float = 0.0, keep: int = 0, of: int = 0
) -> tuple[Tensor, Tensor]:
    """Eq. 4 on the columns F that are left, w² (H_mm + 1/[(H_F)⁻¹]₀₀), and eq. 3; the weight and what was kept."""
    weight, gram = weight.double().clone(), gram.double()
    rows, columns = weight.shape
    dead = gram.diagonal() == 0
    weight[:, dead] = 0
    matrix = gram + torch.diag(dead.double())
    matrix += 0.01 * matrix.diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    inverses = [torch.linalg.inv(matrix[m:, m:]) for m in range(columns)]
    worth = []
    for m, inverse in enumerate(inverses):
        obd, obs, theirs = matrix[m, m], 1 / inverse[0, 0], 1 / inverse[0, 0].sqrt()
        worth.append(obd + obs if variant == "default" else obs if of else obd + theirs)
    kept = torch.ones(rows, columns, dtype=torch.bool)
    for m in range(columns):
        if not of and m % blocksize == 0:
            block = range(m, min(m + blocksize, columns))
            score = torch.stack([weight[:, j] ** 2 * worth[j] for j in block], dim=1)
            kept[:, block] = score > score.flatten().sort().values[int(score.numel() * sparsity)]
        if of and m % of == 0:
            for o in range(rows):
                stay = best_of_group([float(weight[o, j] ** 2 * worth[j]) for j in range(m, m + of)], keep)
                kept[o, m : m + of] = torch.tensor([j in stay for j in range(of)])
        gone = ~kept[:, m]
        weight[gone, m:] -= torch.outer(weight[gone, m] / inverses[m][0, 0], inverses[m][0])
        weight[gone, m] = 0
    return weight, kept


def related(tokens: int, width: int) -> Tensor:
    """Inputs (T, I) that repeat one another, so that H_mm and 1/[H⁻¹]_mm are far apart."""
    return inputs(tokens, width) @ normal(width, 5, seed=7) @ normal(5, width, seed=8) + inputs(tokens, width)


def test_the_factor_holds_the_inverse_of_the_columns_left() -> None:
    """U_mm² = [(H_F)⁻¹]₀₀ for F the columns from m on, which is how SparseGPT reads [H⁻¹]_mm."""
    matrix = hessian(related(60, 12))
    damped = matrix.double() + 0.01 * matrix.double().diagonal().mean() * torch.eye(12, dtype=torch.float64)
    explicit = torch.stack([torch.linalg.inv(damped[m:, m:])[0, 0] for m in range(12)])
    factor = damped_inverse(matrix, 0.01).factor
    torch.testing.assert_close(factor.diagonal().double() ** 2, explicit, rtol=1e-4, atol=0)


@both_variants
@pytest.mark.parametrize("dead", [(), (0, 5, 11)], ids=["seen", "dead"])
@pytest.mark.parametrize(("blocksize", "width"), [(128, 24), (8, 24), (10, 24), (1, 12)])
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8])
def test_isc_is_the_column_loop(
    sparsity: float, blocksize: int, width: int, dead: tuple[int, ...], variant: Variant
) -> None:
    weight, tokens = normal(9, width), related(4 * width, width)
    tokens[:, list(dead)] = 0
    seen = seen_by(gram, *tokens.split(width))
    pruned = ISC(blocksize=blocksize, variant=variant).prune(weight, seen, Unstructured(sparsity))
    expected, kept = slow(weight, seen.matrix, variant, blocksize=blocksize, sparsity=sparsity)
    assert torch.equal(pruned.kept, kept)
    torch.testing.assert_close(pruned.weight.double(), expected, rtol=1e-3, atol=1e-4)


@both_variants
@pytest.mark.parametrize("blocksize", [128, 8])
@pytest.mark.parametrize(("keep", "of"), [(2, 4), (4, 8), (1, 4), (2, 8), (3, 4)])
def test_isc_n_of_m_is_the_column_loop(keep: int, of: int, blocksize: int, variant: Variant) -> None:
    weight, seen = normal(7, 24, seed=3), seen_by(gram, related(96, 24))
    pruned = ISC(blocksize=blocksize, variant=variant).prune(weight, seen, NofM(keep, of))
    expected, kept = slow(weight, seen.matrix, variant, blocksize=blocksize, keep=keep, of=of)
    assert torch.equal(pruned.kept, kept)
    torch.testing.assert_close(pruned.weight.double(), expected, rtol=1e-3, atol=1e-4)
