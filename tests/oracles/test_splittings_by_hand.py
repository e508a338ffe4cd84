"""ALPS, ADMM and the refit against slow versions of their formulas, and where the answer is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import LINEAR_METHODS, REFITTED, inputs, normal, pattern, seen_by
from slow import admm, alps, least_squares, strongest
from torch import Tensor

from harness.core.pattern import NofM
from harness.core.products import Multiplier
from harness.core.refit import conjugate_gradients, refittable
from harness.core.scaled import Scaled
from harness.core.statistic import Gram, gram
from harness.methods.admm import ADMM
from harness.methods.alps import ALPS

SEEDS = range(4)
SPLITTINGS = {"alps": ALPS(), "admm": ADMM(), "admm released": ADMM(variant="released")}
every_splitting = pytest.mark.parametrize("method", SPLITTINGS.values(), ids=SPLITTINGS)
REFITTABLE = [name.removesuffix(" refit") for name in REFITTED]


def case(seed: int, rows: int = 12, columns: int = 16) -> tuple[Tensor, Gram]:
    return normal(rows, columns, seed=seed), seen_by(gram, inputs(4 * columns, columns, seed=seed))


def squared_error(weight: Tensor, dense: Tensor, matrix: Tensor) -> Tensor:
    """tr(Δ G Δᵀ) by rows (O,)."""
    change = (weight - dense).double()
    return (change @ matrix.double() * change).sum(dim=1)


@pytest.mark.parametrize("asked", ["0.3", "0.5", "0.7", "0.9", "2of4", "1of4", "3of4", "4of8"])
@pytest.mark.parametrize("seed", SEEDS)
def test_alps_is_its_formula(seed: int, asked: str) -> None:
    weight, seen = case(seed)
    wanted = pattern(asked)
    groups = {"keep": wanted.keep, "of": wanted.of} if isinstance(wanted, NofM) else {}
    stay = weight.numel() - int(weight.numel() * wanted.sparsity)
    expected, kept = alps(weight, seen.matrix, count=stay, **groups)
    plain = ALPS(refit_steps=0).prune(weight, seen, wanted)
    assert torch.equal(plain.kept, kept)
    torch.testing.assert_close(plain.weight.double(), expected, rtol=1e-3, atol=1e-4)
    refitted = ALPS(refit_steps=200).prune(weight, seen, wanted)
    ridged = seen.matrix + 0.01 * seen.matrix.diagonal().mean() * torch.eye(16)
    assert torch.equal(refitted.kept, kept)
    least = squared_error(least_squares(weight, ridged, kept), weight, ridged).sum()
    assert float(squared_error(refitted.weight, weight, ridged).sum()) == pytest.approx(
        float(least), rel=1e-4
    )  # in float32


@pytest.mark.parametrize("asked", ["0.3", "0.5", "0.7", "0.9", "2of4", "1of4", "3of4", "4of8"])
@pytest.mark.parametrize("variant", ["default", "released"])
@pytest.mark.parametrize("seed", SEEDS)
def test_admm_is_its_formula(seed: int, variant: Any, asked: str) -> None:
    weight, seen = case(seed)
    wanted = pattern(asked)
    groups = {"keep": wanted.keep, "of": wanted.of} if isinstance(wanted, NofM) else {}
    gradual = variant == "default" or bool(groups)
    expected, kept = admm(weight, seen.matrix, sparsity=wanted.sparsity, gradual=gradual, **groups)
    pruned = ADMM(variant=variant).prune(weight, seen, wanted)
    assert torch.equal(pruned.kept, kept)
    torch.testing.assert_close(pruned.weight.double(), expected, rtol=1e-3, atol=1e-4)


@every_splitting
@pytest.mark.parametrize("asked", ["0.3", "0.5", "0.7", "0.9", "2of4"])
@pytest.mark.parametrize("seed", SEEDS)
def test_independent_inputs_give_wanda_over_the_matrix(method: Any, seed: int, asked: str) -> None:
    """A diagonal G: nothing compensates anything, the largest |w| √G_mm stay as they are."""
    weight = normal(20, 32, seed=seed)
    diagonal = torch.logspace(-1, 1, 32)[torch.randperm(32, generator=torch.Generator().manual_seed(seed))]
    small = replace(method, ridge=1e-9)
    pruned, wanted = small.prune(weight, Gram(torch.diag(diagonal), 1), pattern(asked)), pattern(asked)
    score = weight.abs() * diagonal.sqrt()
    if isinstance(wanted, NofM):
        kept = torch.zeros_like(weight, dtype=torch.bool)
        kept.reshape(-1, 4).scatter_(1, score.reshape(-1, 4).topk(2).indices, torch.ones(160, 2, dtype=torch.bool))
    else:
        kept = strongest(score, weight.numel() - int(weight.numel() * wanted.sparsity))
    assert torch.equal(pruned.kept, kept)
    torch.testing.assert_close(pruned.weight, weight * kept)


@every_splitting
@pytest.mark.parametrize(("asked", "gone"), [("0.7", 448), ("0of4", 640), ("4of4", 0), ("0", 0)])
@pytest.mark.parametrize("dead", [0, 3, 20, 32])
def test_the_count_is_exact_whatever_was_seen(method: Any, dead: int, asked: str, gone: int) -> None:
    weight, tokens = normal(20, 32), inputs(100, 32)
    tokens[:, :dead] = 0
    wanted = NofM(0, 4) if asked == "0of4" else pattern(asked)
    pruned = method.prune(weight, seen_by(gram, tokens), wanted)
    assert int((~pruned.kept).sum()) == gone and bool(torch.isfinite(pruned.weight).all())
    assert bool((pruned.weight[~pruned.kept] == 0).all())


@pytest.mark.parametrize("steps", [1, 3, 10, 100])
def test_conjugate_gradients_lower_the_error_of_every_output(steps: int) -> None:
    weight, seen = case(1, 9, 24)
    problem = Scaled(seen, 0.01, "ridge first")
    dense = problem.into(weight)
    kept = strongest(dense.abs(), 100)
    target = problem.times(dense)
    x = conjugate_gradients(problem.times, target, dense * kept, kept, steps)
    before = squared_error(dense * kept, dense, problem.matrix)
    after = squared_error(x, dense, problem.matrix)
    assert bool((after <= before).all()) and after.sum() < before.sum()
    best = squared_error(least_squares(dense, problem.matrix, kept), dense, problem.matrix)
    assert bool((after >= best * (1 - 1e-5)).all())
    if steps == 100:
        torch.testing.assert_close(after, best, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("asked", ["0.5", "2of4"])
@pytest.mark.parametrize("name", REFITTABLE)
def test_a_refit_keeps_the_mask_and_lowers_the_error(name: str, asked: str) -> None:
    weight, seen = case(2, 10, 32)
    method = replace(LINEAR_METHODS[name], refit=False)
    with_refit = replace(method, refit=True)
    tokens = inputs(128, 32, seed=2)
    plain = method.prune(weight, seen_by(method.statistic, tokens), pattern(asked))
    ours = with_refit.prune(weight, seen_by(with_refit.statistic, tokens), pattern(asked))
    assert torch.equal(ours.kept, plain.kept)
    ridged = seen.matrix + 0.01 * seen.matrix.diagonal().mean() * torch.eye(32)
    before, after = (squared_error(one.weight, weight, ridged) for one in (plain, ours))
    assert bool((after <= before * (1 + 1e-5)).all()) and after.sum() < before.sum()
    best = squared_error(least_squares(weight, ridged, plain.kept), weight, ridged)
    assert after.sum() < best.sum() + 0.5 * (before.sum() - best.sum())


def test_the_option_is_there_for_all_that_choose_a_mask() -> None:
    assert {"magnitude", "wanda", "sparsegpt", "isc", "admm"} <= set(REFITTABLE)
    assert refittable.__doc__ and "between" in refittable.__doc__


@every_splitting
@pytest.mark.parametrize("asked", ["0.5", "2of4"])
def test_the_error_is_below_that_of_sparsegpt(method: Any, asked: str) -> None:
    weight, tokens = normal(48, 64, seed=7), inputs(300, 64, seed=7)
    seen = seen_by(gram, tokens)
    ours, theirs = (
        squared_error(one.prune(weight, seen, pattern(asked)).weight, weight, seen.matrix).sum()
        for one in (method, LINEAR_METHODS["sparsegpt"])
    )
    assert ours < theirs


@pytest.mark.parametrize("rounding", ["float32", "split", "half"])
def test_products_round_as_they_say(rounding: Any) -> None:
    x, matrix = normal(30, 64) * torch.logspace(-6, 6, 30)[:, None], normal(64, 64, seed=1)
    exact = x.double() @ matrix.double()
    error = ((Multiplier(matrix, rounding)(x) - exact).abs() / (x.norm(dim=1)[:, None] * matrix.norm())).max()
    assert error < {"float32": 1e-7, "split": 1e-7, "half": 2e-4}[rounding]
    assert rounding != "half" or error > 1e-6
