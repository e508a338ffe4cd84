"""Methods against slow versions from their equations, on matrices small enough to see."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers import hessian, inputs, normal, seen_by
from slow import best_of_group, magnitude_kept, sparsegpt, wanda_kept, without_first
from torch import Tensor

from harness.core.pattern import NofM, Unstructured, keep
from harness.core.statistic import gram, squared_norms
from harness.methods.magnitude import Magnitude
from harness.methods.sparsegpt import SparseGPT
from harness.methods.wanda import Wanda

SPARSITIES = [0.05, 0.3, 0.5, 0.7, 0.9, 0.99]


def tied(rows: int, columns: int, seed: int) -> Tensor:
    """Small whole numbers: nearly every weight has an equal."""
    return torch.randint(-4, 5, (rows, columns), generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("weight", [normal(7, 13), tied(7, 13, 0), tied(1, 5, 1), torch.ones(3, 4)], ids=str)
def test_magnitude_removes_the_threshold_and_its_ties(weight: Tensor, sparsity: float) -> None:
    pruned = Magnitude().prune(weight, None, Unstructured(sparsity))
    assert torch.equal(pruned.kept, magnitude_kept(weight, sparsity))
    assert torch.equal(pruned.weight, torch.where(pruned.kept, weight, 0))


def test_magnitude_by_rows_compares_rows() -> None:
    weight = normal(5, 12) * torch.tensor([[1.0], [10.0], [100.0], [0.1], [1.0]])
    kept = Magnitude(group="row").prune(weight, None, Unstructured(0.5)).kept
    assert torch.equal(kept, torch.cat([magnitude_kept(row[None], 0.5) for row in weight]))


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("ties", [False, True])
def test_wanda_removes_the_lowest_of_each_row(sparsity: float, ties: bool) -> None:
    weight = tied(6, 17, 0) if ties else normal(6, 17)
    tokens = torch.ones(4, 17) if ties else inputs(40, 17)
    pruned = Wanda().prune(weight, seen_by(squared_norms, tokens), Unstructured(sparsity))
    assert torch.equal(pruned.kept, wanda_kept(weight, tokens, sparsity))
    assert (~pruned.kept).sum(dim=1).tolist() == [int(17 * sparsity)] * 6
    assert torch.equal(pruned.weight, torch.where(pruned.kept, weight, 0))


def test_wanda_over_the_matrix() -> None:
    weight, tokens = normal(6, 8), inputs(40, 8)
    kept = Wanda(group="matrix").prune(weight, seen_by(squared_norms, tokens), Unstructured(0.5)).kept
    scores = (weight.abs() * tokens.norm(dim=0)).flatten()
    assert torch.equal(kept.flatten(), scores > scores.sort().values[23])


@pytest.mark.parametrize(("keep_", "of"), [(n, m) for m in (2, 3, 4) for n in range(m + 1)])
def test_n_of_m_keeps_the_best_of_every_order(keep_: int, of: int) -> None:
    scores = torch.tensor([list(order) for order in itertools.permutations([1.0, 2.0, 4.0, 8.0][:of])])
    kept = keep(scores, NofM(keep_, of))
    for row, stay in zip(scores.tolist(), kept, strict=True):
        assert set(stay.nonzero().flatten().tolist()) == best_of_group(row, keep_)


@pytest.mark.parametrize(("keep_", "of"), [(2, 4), (4, 8), (1, 4), (2, 8), (3, 4)])
@pytest.mark.parametrize("method", [Magnitude(), Wanda()], ids=["magnitude", "wanda"])
def test_n_of_m_of_scores(method: Magnitude | Wanda, keep_: int, of: int) -> None:
    weight, tokens = normal(5, 24), inputs(60, 24)
    kept = method.prune(weight, seen_by(squared_norms, tokens), NofM(keep_, of)).kept
    scores = weight.abs() * (tokens.norm(dim=0) if isinstance(method, Wanda) else 1)
    for group, stay in zip(scores.reshape(-1, of).tolist(), kept.reshape(-1, of), strict=True):
        assert set(stay.nonzero().flatten().tolist()) == best_of_group(group, keep_)


def test_elimination_is_the_inverse_of_the_rest() -> None:
    """The oracle's own step, held against an inverse made from nothing."""
    matrix = hessian(inputs(20, 6)).double()
    assert torch.allclose(without_first(torch.linalg.inv(matrix)), torch.linalg.inv(matrix[1:, 1:]))


@pytest.mark.parametrize("dead", [(), (0, 5, 11)], ids=["seen", "dead"])
@pytest.mark.parametrize(("blocksize", "width"), [(128, 24), (8, 24), (10, 24), (1, 12), (24, 24)])
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8])
def test_sparsegpt_is_the_column_loop(sparsity: float, blocksize: int, width: int, dead: tuple[int, ...]) -> None:
    weight, tokens = normal(9, width), inputs(4 * width, width)
    tokens[:, list(dead)] = 0
    seen = seen_by(gram, *tokens.split(width))
    pruned = SparseGPT(0.01, blocksize).prune(weight, seen, Unstructured(sparsity))
    expected, kept = sparsegpt(weight, seen.matrix, damping=0.01, blocksize=blocksize, sparsity=sparsity)
    assert torch.equal(pruned.kept, kept)
    torch.testing.assert_close(pruned.weight.double(), expected, rtol=1e-3, atol=1e-4)
    assert (pruned.weight[:, list(dead)] == 0).all()


@pytest.mark.parametrize("blocksize", [128, 8])
@pytest.mark.parametrize(("keep_", "of"), [(2, 4), (4, 8), (1, 4), (2, 8), (3, 4)])
def test_sparsegpt_n_of_m_is_the_column_loop(keep_: int, of: int, blocksize: int) -> None:
    weight, seen = normal(7, 24, seed=3), seen_by(gram, inputs(96, 24, seed=3))
    pruned = SparseGPT(0.01, blocksize).prune(weight, seen, NofM(keep_, of))
    expected, kept = sparsegpt(weight, seen.matrix, damping=0.01, blocksize=blocksize, keep=keep_, of=of)
    assert torch.equal(pruned.kept, kept)
    torch.testing.assert_close(pruned.weight.double(), expected, rtol=1e-3, atol=1e-4)


def test_the_first_column_is_optimal_brain_surgeon() -> None:
    """Only the first weight goes (3 of 4, the first far smallest): the rest is the least-squares best (OBS, eq. 3)."""
    weight = torch.tensor([[0.01, 2.0, -3.0, 1.5], [-0.02, 1.0, 2.0, -2.5]])
    seen = seen_by(gram, inputs(50, 4))
    pruned = SparseGPT(damping=0.01).prune(weight, seen, NofM(3, 4))
    assert pruned.kept.tolist() == [[False, True, True, True]] * 2
    matrix = seen.matrix.double()
    damped = matrix + 0.01 * matrix.diagonal().mean() * torch.eye(4, dtype=torch.float64)
    inverse = torch.linalg.inv(damped)
    obs = weight.double() - weight[:, :1].double() / inverse[0, 0] * inverse[0]
    best = torch.linalg.solve(damped[1:, 1:], (weight.double() @ damped)[:, 1:].T).T  # argmin (w−ŵ)ᵀ H (w−ŵ), ŵ₀ = 0
    torch.testing.assert_close(pruned.weight.double(), obs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(pruned.weight[:, 1:].double(), best, rtol=1e-5, atol=1e-6)


def test_the_choice_within_a_column_is_that_of_obs() -> None:
    """A block of one column: the outputs with the least w²/[H⁻¹] go, ⌊O·s⌋ and the threshold itself."""
    weight, seen = normal(8, 6), seen_by(gram, inputs(50, 6))
    kept = SparseGPT(blocksize=1).prune(weight, seen, Unstructured(0.5)).kept
    assert torch.equal(kept[:, 0], weight[:, 0].abs() > weight[:, 0].abs().sort().values[4])


def test_compensation_is_worth_it() -> None:
    """Where inputs repeat one another, the same mask without compensation has a far larger error of outputs."""
    weight, tokens = normal(16, 32), normal(200, 8, seed=1) @ normal(8, 32, seed=2) + 0.1 * normal(200, 32, seed=3)
    pruned = SparseGPT().prune(weight, seen_by(gram, tokens), Unstructured(0.5))
    compensated = ((pruned.weight - weight) @ tokens.T).square().sum()
    alone = ((weight * pruned.kept - weight) @ tokens.T).square().sum()
    assert compensated < 0.2 * alone
