"""Thanos against the least-squares problem that each of its steps solves, put another way and in float64."""

from __future__ import annotations

import pytest
import torch
from helpers import hessian, inputs, normal, seen_by
from slow import best_of_group
from torch import Tensor

from harness.core.joint import compensated
from harness.core.pattern import NofM, Unstructured, satisfies
from harness.methods.sparsegpt import SparseGPT
from harness.methods.thanos import Thanos


def damped(matrix: Tensor) -> Tensor:
    matrix = matrix.double()
    matrix = matrix + torch.diag((matrix.diagonal() == 0).double())
    return matrix + 0.01 * matrix.diagonal().mean() * torch.eye(len(matrix), dtype=torch.float64)


def without(row: Tensor, gone: Tensor, matrix: Tensor) -> Tensor:
    """argmin (row − x) H (row − x)ᵀ with x zero where `gone`: the normal equations of what stays."""
    stays, best = ~gone, torch.zeros_like(row)
    if stays.any():
        best[stays] = torch.linalg.solve(matrix[stays][:, stays], matrix[stays] @ row)
    return best


def slow(weight: Tensor, matrix: Tensor, blocksize: int, sparsity: float = 0.0, keep: int = 0, of: int = 0) -> Tensor:
    """Algorithms 1 and 2: of the columns left, those that go in this block; each row solved for what stays of them."""
    weight, norm, full = weight.double().clone(), matrix.double().diagonal().sqrt(), damped(matrix)
    weight[:, norm == 0] = 0
    rows, columns = weight.shape
    zeros = 0
    for start in range(0, columns, blocksize):
        end = min(start + blocksize, columns)
        gone = torch.zeros(rows, columns, dtype=torch.bool)
        scores = weight.abs() * norm
        if of:
            for o in range(rows):
                for first in range(start, end, of):
                    stay = best_of_group(scores[o, first : first + of].tolist(), keep)
                    gone[o, first : first + of] = torch.tensor([j not in stay for j in range(of)])
        else:
            places = [(float(scores[o, i]), o, i) for o in range(rows) for i in range(start, columns)]
            for _, o, i in sorted(places)[: int(sparsity * rows * columns) - zeros]:
                gone[o, i] = i < end
            zeros += int(gone.sum())
        for o in range(rows):
            weight[o, start:] = without(weight[o, start:], gone[o, start:], full[start:, start:])
    return weight


@pytest.mark.parametrize("dead", [(), (0, 5, 11)], ids=["seen", "dead"])
@pytest.mark.parametrize("blocksize", [512, 8, 10, 1])
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8])
def test_unstructured(sparsity: float, blocksize: int, dead: tuple[int, ...]) -> None:
    weight, tokens = normal(9, 24), inputs(96, 24)
    tokens[:, list(dead)] = 0
    seen = seen_by(Thanos().statistic, tokens)
    pruned = Thanos(blocksize=blocksize).prune(weight, seen, Unstructured(sparsity))
    expected = slow(weight, seen["gram"].matrix, blocksize, sparsity)
    torch.testing.assert_close(pruned.weight.double(), expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(pruned.weight == 0, expected == 0)
    assert int((pruned.weight == 0).sum()) == max(int(sparsity * 9 * 24), 9 * len(dead))


@pytest.mark.parametrize("blocksize", [512, 8])
@pytest.mark.parametrize(("keep_", "of"), [(2, 4), (4, 8), (1, 4), (2, 8), (3, 4)])
def test_n_of_m(keep_: int, of: int, blocksize: int) -> None:
    weight, seen = normal(7, 24, seed=3), seen_by(Thanos().statistic, inputs(96, 24, seed=3))
    pruned = Thanos(blocksize=blocksize).prune(weight, seen, NofM(keep_, of))
    expected = slow(weight, seen["gram"].matrix, blocksize, keep=keep_, of=of)
    assert torch.equal(pruned.kept, expected != 0) and satisfies(pruned.weight, NofM(keep_, of))
    torch.testing.assert_close(pruned.weight.double(), expected, rtol=1e-3, atol=1e-4)


def test_the_threshold_counts_the_whole_matrix_exactly() -> None:
    """Inputs never seen are among the zeros that are asked for, and bring none on top."""
    tokens = inputs(400, 64)
    tokens[:, :30] = 0
    pruned = Thanos(blocksize=16).prune(normal(33, 64), seen_by(Thanos().statistic, tokens), Unstructured(0.7))
    assert int((pruned.weight == 0).sum()) == int((~pruned.kept).sum()) == int(0.7 * 33 * 64)


def test_one_column_at_a_time_is_the_step_of_sparsegpt() -> None:
    """The same mask, one block of one column: optimal brain surgeon either way."""
    weight, seen = normal(8, 4), seen_by(Thanos().statistic, inputs(50, 4))
    weight[:, 0] *= 1e-4
    one, other = (
        Thanos(blocksize=4).prune(weight, seen, NofM(3, 4)),
        SparseGPT().prune(weight, seen["gram"], NofM(3, 4)),
    )
    assert torch.equal(one.kept, other.kept) and not one.kept[:, 0].any()
    torch.testing.assert_close(one.weight, other.weight, rtol=1e-4, atol=1e-6)


def test_joint_compensation_has_the_least_error_for_its_mask() -> None:
    """In a single block what stays is the exact least-squares solution, so no other has a smaller damped error."""
    weight, tokens = normal(16, 32), normal(200, 8, seed=1) @ normal(8, 32, seed=2) + 0.1 * normal(200, 32, seed=3)
    matrix = damped(hessian(tokens))
    pruned = Thanos().prune(weight, seen_by(Thanos().statistic, tokens), Unstructured(0.6))
    best = torch.stack([without(row, ~kept, matrix) for row, kept in zip(weight.double(), pruned.kept, strict=True)])
    torch.testing.assert_close(pruned.weight.double(), best, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("removed", [torch.zeros(5, 6, dtype=torch.bool), torch.ones(5, 6, dtype=torch.bool)])
def test_rows_that_lose_nothing_or_everything(removed: Tensor) -> None:
    removed[0] = ~removed[0]
    weight, matrix = normal(5, 10), damped(hessian(inputs(60, 10)))
    inverse = torch.linalg.inv(matrix)[:6].float()
    result = compensated(weight, removed, inverse)
    gone = torch.cat([removed, torch.zeros(5, 4, dtype=torch.bool)], dim=1)
    best = torch.stack([without(row, out, matrix) for row, out in zip(weight.double(), gone, strict=True)])
    torch.testing.assert_close(result.double(), best, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("variant", "outliers", "dense"),
    [("default", 0.0, 0), ("released", 0.0, 1), ("default", 0.25, 5), ("released", 0.25, 6)],
)
def test_outliers_stay_dense(variant: str, outliers: float, dense: int) -> None:
    weight, tokens = normal(20, 24), inputs(100, 24)
    method = Thanos(variant=variant, outliers=outliers)  # type: ignore[arg-type]
    pruned = method.prune(weight, seen_by(method.statistic, tokens), NofM(2, 4))
    largest = (weight @ torch.diag(tokens.norm(dim=0))).norm(dim=1).argsort(descending=True)[:dense]
    assert pruned.kept[largest].all() and torch.equal(pruned.weight[largest], weight[largest])
    assert int(pruned.kept.all(dim=1).sum()) == dense
    assert satisfies(pruned.weight, NofM(2, 4)) == (dense == 0)


def test_the_released_ranking_sees_the_last_window_alone() -> None:
    weight = torch.tensor([[5.0, 1.0, 1.0, 1.0], [1.0, 5.0, 1.0, 1.0]])
    first, last = torch.tensor([[10.0, 0.1, 0.1, 0.1]]), torch.tensor([[0.1, 1.0, 0.1, 0.1]])
    for variant, dense in (("released", 1), ("default", 0)):
        method = Thanos(variant=variant, outliers=0.0 if variant == "released" else 0.5)  # type: ignore[arg-type]
        kept = method.prune(weight, seen_by(method.statistic, first, last), NofM(2, 4)).kept
        assert kept.all(dim=1).tolist() == [dense == 0, dense == 1]
