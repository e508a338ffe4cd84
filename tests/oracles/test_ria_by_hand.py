"""RIA's score from its equation; its permutations against trying all of them."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers import inputs, normal, seen_by
from torch import Tensor

from harness.core.channels import assigned, dealt, kept_in
from harness.core.pattern import NofM, Unstructured, satisfies
from harness.core.statistic import squared_norms
from harness.methods.ria import RIA
from harness.methods.wanda import Wanda
from harness.runtime.errors import UserError

PERMUTATIONS = [
    {"reallocation": True},
    {"reallocation": True, "importance": "retained_degree"},
    {"reallocation": True, "importance": "retained_degree", "group": "row"},
    {"reallocation": True, "lsa": True},
]


def slow_score(weight: Tensor, tokens: Tensor, a: float) -> Tensor:
    """Eq. 3, a weight at a time, in float64."""
    weight, tokens = weight.double(), tokens.double()
    score = torch.zeros_like(weight)
    for o, i in itertools.product(*map(range, weight.shape)):
        size = abs(float(weight[o, i]))
        relative = size / float(weight[o].abs().sum()) + size / float(weight[:, i].abs().sum())
        score[o, i] = relative * float(tokens[:, i].norm()) ** a
    return score


@pytest.mark.parametrize("a", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.9])
def test_the_score_over_matrix_and_row(sparsity: float, a: float) -> None:
    weight, tokens = normal(9, 14), inputs(60, 14)
    score, seen = slow_score(weight, tokens, a), seen_by(squared_norms, tokens)
    kept = RIA(a=a).prune(weight, seen, Unstructured(sparsity)).kept
    released = RIA(a=a, variant="released").prune(weight, seen, Unstructured(sparsity)).kept
    ordered, count = score.flatten().sort().values, int(126 * sparsity)
    assert torch.equal(kept, score >= ordered[count]) and torch.equal(released, score > ordered[count])
    rows = RIA(a=a, group="row").prune(weight, seen, Unstructured(sparsity)).kept
    assert torch.equal(rows, score.argsort(dim=1).argsort(dim=1) >= int(14 * sparsity))


def test_scores_of_zero_are_no_trouble() -> None:
    """A row and a column of zeros, of which the released code makes NaN."""
    weight = normal(6, 8)
    weight[2], weight[:, 5] = 0, 0
    pruned = RIA().prune(weight, seen_by(squared_norms, inputs(30, 8)), Unstructured(0.5))
    assert torch.isfinite(RIA().score(weight, seen_by(squared_norms, inputs(30, 8)))).all()
    assert not pruned.kept[2].any() and not pruned.kept[:, 5].any()
    assert int(pruned.kept.sum()) == 48 - 24


def test_more_inputs_unseen_than_asked_for() -> None:
    """The sparsity stays what was asked for; the released code removes every tie."""
    weight, tokens = normal(6, 10), inputs(30, 10)
    tokens[:, :8] = 0
    seen = seen_by(squared_norms, tokens)
    assert int((~RIA().prune(weight, seen, Unstructured(0.7)).kept).sum()) == 42
    assert int((~RIA(variant="released").prune(weight, seen, Unstructured(0.7)).kept).sum()) == 48


def test_inputs_are_dealt_there_and_back() -> None:
    """Of rising worth 0…7 to two groups of four: 0 1 forth, 3 2 back, 4 5 forth, 7 6 back."""
    assert dealt(torch.arange(8.0), 4).tolist() == [0, 3, 4, 7, 1, 2, 5, 6]
    assert dealt(torch.tensor([5.0, 1.0, 3.0, 2.0]), 2).tolist() == [1, 0, 3, 2]


@pytest.mark.parametrize("settings", PERMUTATIONS, ids=str)
@pytest.mark.parametrize("wanted", [NofM(2, 4), NofM(1, 4), NofM(4, 8), NofM(3, 4), NofM(1, 2)], ids=str)
def test_the_pattern_holds_in_the_order_that_is_told(wanted: NofM, settings: dict[str, object]) -> None:
    weight, tokens = normal(24, 48), inputs(200, 48)
    pruned = RIA(**settings).prune(weight, seen_by(squared_norms, tokens), wanted)  # type: ignore[arg-type]
    assert pruned.order is not None and sorted(pruned.order.tolist()) == list(range(48))
    assert satisfies(pruned.weight, wanted, pruned.order) and not satisfies(pruned.weight, wanted)
    assert int(pruned.kept.sum()) == 24 * 48 * wanted.keep // wanted.of
    assert torch.equal(pruned.weight, weight * pruned.kept)


def test_a_checker_takes_no_order_that_is_none() -> None:
    weight = torch.tensor([[1.0, 2.0, 0.0, 0.0]])
    assert satisfies(weight, NofM(1, 2), torch.tensor([0, 2, 1, 3]))
    assert not satisfies(weight, NofM(1, 2)) and not satisfies(weight, NofM(1, 2), torch.tensor([0, 1, 2, 3]))
    assert not satisfies(weight, NofM(1, 2), torch.tensor([0, 2, 0, 2]))
    assert not satisfies(weight, NofM(1, 2), torch.tensor([0, 2]))


@pytest.mark.parametrize("wanted", [NofM(1, 2), NofM(1, 3), NofM(2, 3), NofM(2, 4)], ids=str)
def test_each_place_is_assigned_for_the_greatest_total(wanted: NofM) -> None:
    """Place by place, against every way of giving its inputs to the groups."""
    score = normal(5, 4 * wanted.of, seed=7).abs()
    order = torch.randperm(4 * wanted.of, generator=torch.Generator().manual_seed(1))

    def total(groups: Tensor) -> float:
        return float((score * kept_in(groups.reshape(-1), score, wanted)).double().sum())

    best = order.reshape(-1, wanted.of)
    for place in range(wanted.of):
        tried = []
        for given in itertools.permutations(range(4)):
            groups = best.clone()
            groups[:, place] = best[list(given), place]
            tried.append(groups)
        best = max(tried, key=total)
    found = assigned(order, score, wanted)
    assert sorted(found.tolist()) == sorted(order.tolist())
    assert total(found) == pytest.approx(total(best), rel=1e-6) and total(found) > total(order)


def test_permutations_keep_more_of_the_score() -> None:
    weight, seen = normal(32, 64), seen_by(squared_norms, inputs(300, 64))
    kept = [
        float((method.score(weight, seen) * method.prune(weight, seen, NofM(2, 4)).kept).sum())
        for method in (RIA(), RIA(reallocation=True), RIA(reallocation=True, lsa=True))
    ]
    assert kept == sorted(kept) and kept[0] < kept[2]


def test_without_a_pattern_nothing_is_permuted() -> None:
    weight, seen = normal(8, 16), seen_by(squared_norms, inputs(60, 16))
    method = RIA(reallocation=True, lsa=True)
    assert method.prune(weight, seen, Unstructured(0.5)).order is None
    assert method.prune(weight, seen, NofM(4, 4)).order is None
    empty = method.prune(weight, seen, NofM(0, 4))
    assert empty.order is None and not empty.kept.any()


def test_one_row_of_equal_weights_is_wanda_by_row() -> None:
    """Relative importance is the same everywhere then, up to the column's own weight."""
    weight, seen = torch.ones(1, 12), seen_by(squared_norms, inputs(40, 12))
    assert torch.equal(
        RIA(group="row").prune(weight, seen, Unstructured(0.5)).kept,
        Wanda().prune(weight, seen, Unstructured(0.5)).kept,
    )


def test_settings_that_say_nothing_are_refused() -> None:
    with pytest.raises(UserError, match=r"method.lsa=true starts from permuted inputs"):
        RIA(lsa=True)
    with pytest.raises(UserError, match=r"method.a=-1"):
        RIA(a=-1)
