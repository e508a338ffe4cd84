"""Exchanges of SparseSwaps against trying every pair, and their promise: the error never rises."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers import hessian, normal, seen_by
from torch import Tensor

from harness.core.pattern import NofM, Pattern, Unstructured, parse_pattern, satisfies
from harness.core.statistic import gram
from harness.core.swaps import swapped
from harness.methods.magnitude import Magnitude
from harness.methods.ria import RIA
from harness.methods.sparsegpt import SparseGPT
from harness.methods.swaps import Swaps
from harness.methods.thanos import Thanos
from harness.methods.wanda import Wanda

INNER = [Wanda(), Magnitude(), RIA(), SparseGPT(blocksize=16), Thanos(blocksize=16), RIA(reallocation=True)]


def mixed(tokens: int, width: int) -> Tensor:
    """Inputs (T, I) that repeat one another, so that what is best alone is not best together."""
    return normal(tokens, 4, seed=1) @ normal(4, width, seed=2) + 0.5 * normal(tokens, width, seed=3)


def losses(weight: Tensor, kept: Tensor, matrix: Tensor) -> Tensor:
    """dᵀ G d of each row (O,), in float64."""
    gone = weight.double() * ~kept
    return ((gone @ matrix.double()) * gone).sum(dim=1)


def pairs(kept: Tensor, of: int) -> list[tuple[int, int]]:
    """Every exchange of a row (I,): a pruned and a kept input, of one group where there are groups."""
    places = range(len(kept))
    return [
        (i, j)
        for i, j in itertools.product(places, places)
        if not kept[i] and kept[j] and (not of or i // of == j // of)
    ]


def exchanged(kept: Tensor, pair: tuple[int, int]) -> Tensor:
    changed = kept.clone()
    changed[pair[0]], changed[pair[1]] = True, False
    return changed


def steepest(weight: Tensor, kept: Tensor, matrix: Tensor, of: int, steps: int) -> Tensor:
    """So many best exchanges of each row, found by trying them all."""
    kept = kept.clone()
    for o, _ in itertools.product(range(len(weight)), range(steps)):
        now = float(losses(weight[o : o + 1], kept[o : o + 1], matrix))
        tried = {
            pair: float(losses(weight[o : o + 1], exchanged(kept[o], pair)[None], matrix))
            for pair in pairs(kept[o], of)
        }
        best = min(tried, key=tried.__getitem__, default=None)
        if best is None or tried[best] >= now * (1 - 1e-6):
            continue
        kept[o] = exchanged(kept[o], best)
    return kept


@pytest.mark.parametrize("asked", ["0.5", "0.3", "0.8", "2of4", "1of4", "4of8", "3of4"])
@pytest.mark.parametrize("steps", [1, 3])
def test_full_rounds_are_the_steepest_descent(asked: str, steps: int) -> None:
    weight, tokens, wanted = normal(6, 16), mixed(80, 16), parse_pattern(asked)
    matrix, start = hessian(tokens), Wanda().prune(weight, seen_by(Wanda().statistic, tokens), wanted).kept
    of = wanted.of if isinstance(wanted, NofM) else 0
    found = swapped(weight, start, matrix, wanted, rounds=steps, swaps=1, shortlist=0)
    assert torch.equal(found, steepest(weight, start, matrix, of, steps))
    assert not torch.equal(found, start)


@pytest.mark.parametrize("asked", ["0.5", "2of4", "1of4"])
def test_many_rounds_end_where_no_exchange_helps(asked: str) -> None:
    weight, tokens, wanted = normal(8, 24), mixed(100, 24), parse_pattern(asked)
    matrix, start = hessian(tokens), Wanda().prune(weight, seen_by(Wanda().statistic, tokens), wanted).kept
    kept = swapped(weight, start, matrix, wanted, rounds=200, swaps=1, shortlist=0)
    of = wanted.of if isinstance(wanted, NofM) else 0
    for o in range(len(weight)):
        now = float(losses(weight[o : o + 1], kept[o : o + 1], matrix))
        for pair in pairs(kept[o], of):
            other = exchanged(kept[o], pair)[None]
            assert float(losses(weight[o : o + 1], other, matrix)) >= now * (1 - 1e-4)


@pytest.mark.parametrize("swaps", [1, 7, 64])
@pytest.mark.parametrize("asked", ["0.5", "0.9", "2of4", "1of8"])
@pytest.mark.parametrize("inner", INNER, ids=lambda inner: type(inner).__name__)
def test_no_row_gets_worse_and_each_keeps_its_count(inner: object, asked: str, swaps: int) -> None:
    weight, tokens, wanted = normal(20, 64), mixed(250, 64), parse_pattern(asked)
    tokens[:, :3] = 0
    method = Swaps(inner=inner, rounds=1, exchanges=swaps, shortlist=16)
    seen = seen_by(method.statistic, tokens)
    start = Swaps(inner=inner, rounds=0).prune(weight, seen, wanted)
    before, matrix = start.kept, hessian(tokens)
    for rounds in (1, 2, 4, 8):
        pruned = Swaps(inner=inner, rounds=rounds, exchanges=swaps, shortlist=16).prune(weight, seen, wanted)
        assert (losses(weight, pruned.kept, matrix) <= losses(weight, before, matrix) * (1 + 1e-9)).all()
        assert torch.equal(pruned.kept.sum(dim=1), start.kept.sum(dim=1))
        assert satisfies(pruned.weight, wanted, pruned.order)
        assert torch.equal(pruned.weight, weight * pruned.kept)
        before = pruned.kept
    assert losses(weight, before, matrix).sum() < losses(weight, start.kept, matrix).sum()


@pytest.mark.parametrize("wanted", [Unstructured(0.5), NofM(2, 4)], ids=str)
def test_rows_in_pieces_and_matrices_together_are_as_alone(wanted: Pattern, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = mixed(200, 32)
    method, weights = Swaps(rounds=2, exchanges=4, shortlist=8), [normal(12, 32), normal(9, 32, seed=1)]
    seen = seen_by(method.statistic, tokens)
    alone = [method.prune(weight, seen, wanted).kept for weight in weights]
    together = method.prune_together(weights, seen, [wanted, wanted])
    monkeypatch.setitem(swapped.__globals__["ELEMENTS"], "cpu", 2000)
    pieces = [method.prune(weight, seen, wanted).kept for weight in weights]
    for one, other, piece in zip(alone, together, pieces, strict=True):
        assert torch.equal(one, other.kept) and torch.equal(one, piece)


def test_inputs_that_do_not_mix_leave_wanda_as_it_is() -> None:
    """With a diagonal Gram matrix the error is the sum of Wanda's squared scores: its mask is the best there is."""
    weight, tokens = normal(7, 12), torch.diag(torch.rand(12, generator=torch.Generator().manual_seed(0)) + 0.1)
    method = Swaps()
    for wanted in (Unstructured(0.5), NofM(2, 4)):
        kept = method.prune(weight, seen_by(method.statistic, tokens), wanted).kept
        assert torch.equal(kept, Wanda().prune(weight, seen_by(Wanda().statistic, tokens), wanted).kept)


def test_an_inner_method_that_sees_the_same_matrix_asks_for_no_other() -> None:
    assert Swaps(inner=SparseGPT()).statistic is gram and Swaps(inner=Magnitude()).statistic is gram
    assert Swaps().statistic is Swaps().statistic
