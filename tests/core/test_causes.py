"""Why achieved and asked differ: each cause by a matrix that has that one alone."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import inputs, normal, pattern, seen_by
from torch import Tensor

from harness.core import causes, checked
from harness.core.allocation import Budget
from harness.core.causes import Counts
from harness.core.geometry import Geometry
from harness.core.interfaces import Pruned
from harness.core.pattern import NofM, Pattern, Unstructured, keep
from harness.core.structure import Cut, Plan, Unit
from harness.methods.magnitude import Magnitude
from harness.methods.sparsegpt import SparseGPT
from harness.methods.wanda import Wanda
from harness.runtime.errors import Failure, Refusal


def counts(dense: Tensor, weight: Tensor, asked: Pattern, unseen: Tensor | None = None) -> Counts:
    found = causes.counted(dense, weight, weight != 0, asked, unseen)
    return causes.read({"site": found}, {"site": asked})["site"]


def only(found: Counts, cause: str | None) -> None:
    """All that is missed is explained by this cause, up to one weight."""
    missed = found.zeros - found.asked
    assert abs(missed) > causes.TOLERANCE * found.parameters
    for name, excess in found.excess.items():
        assert excess == pytest.approx(missed if name == cause else 0, abs=1.01), name


def test_inputs_never_seen() -> None:
    dense, tokens = normal(32, 64), inputs(200, 64)
    tokens[:, :48] = 0
    seen = seen_by(SparseGPT().statistic, tokens)
    weight = SparseGPT(blocksize=16).prune(dense, seen, pattern("0.5")).weight
    only(counts(dense, weight, pattern("0.5"), seen.dead), "unseen")
    only(counts(dense, weight, pattern("0.5"), None), None)  # a guess would be one
    of_four = SparseGPT().prune(dense, seen, pattern("2of4")).weight
    only(counts(dense, of_four, pattern("2of4"), seen.dead), "unseen")


def test_row_quotas() -> None:
    """⌊56 · 0.7⌋ = 39 of 39.2."""
    dense, tokens = normal(40, 56), inputs(100, 56)
    weight = Wanda().prune(dense, seen_by(Wanda().statistic, tokens), pattern("0.7")).weight
    only(counts(dense, weight, pattern("0.7")), "quotas")
    by_column = SparseGPT(blocksize=1).prune(dense, seen_by(SparseGPT().statistic, tokens), pattern("0.7")).weight
    only(counts(dense, by_column, pattern("0.7")), "quotas")  # ⌊40 · 0.7⌋ and the threshold: 29 of 28


@pytest.mark.parametrize("group", ["row", "matrix"])
def test_ties(group: Any) -> None:
    dense = (normal(64, 64) * 4).round() + 0.5
    only(counts(dense, Magnitude(group).prune(dense, None, pattern("0.5")).weight, pattern("0.5")), "ties")


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_a_sparse_checkpoint(method: str) -> None:
    dense = normal(32, 64)
    dense *= keep(dense.abs(), NofM(2, 4))
    made: Any = {"magnitude": Magnitude(), "wanda": Wanda(), "sparsegpt": SparseGPT(blocksize=16)}[method]
    weight = made.prune(dense, seen_by(made.statistic, inputs(200, 64)), pattern("0.3")).weight
    only(counts(dense, weight, pattern("0.3")), "zero")


@pytest.mark.parametrize("removed", [0.2, 0.8])
def test_what_nothing_explains_is_the_methods_own(removed: float) -> None:
    dense, random = normal(32, 64), normal(32, 64, seed=1)
    weight = dense * keep(random, Unstructured(removed), "matrix")
    only(counts(dense, weight, pattern("0.5")), None)
    assert not any(counts(weight, weight, pattern("0.5")).excess.values()), "changed in place: nothing is known"


def of(zeros: int, **excess: float) -> Counts:
    return Counts(1000, 500, zeros, 0, 0, dict.fromkeys(causes.CAUSES, 0.0) | excess)


def said(asked: float, achieved: float, *sites: Counts) -> str:
    named = dict(zip("abc", sites, strict=False))
    return causes.difference(asked, achieved, named, method="mine", allocator="owl", recovery="lora")


def test_the_sentence_adds_up() -> None:
    assert said(0.5, 0.5004, of(500)) == "" == said(0.5, 0.9)
    both = said(0.5, 0.53, of(540, unseen=40.0), of(520, ties=20.0))
    assert both == (
        "achieved sparsity 0.5300 where 0.5 was asked: +0.0200 by inputs that calibration never saw (in 1 of 2 "
        "matrices), +0.0100 by equal magnitudes at the threshold (in 1 of 2 matrices)"
    )
    assert said(0.5, 0.4, of(400)).endswith("-0.1000 by the method 'mine' itself, for the weights show no other cause")
    assert said(0.45, 0.5, of(500)).endswith("+0.0500 by what the allocator 'owl' asks of the matrices")
    assert said(0.5, 0.1, of(500)).endswith("-0.4000 by the recovery 'lora'")


class Two(tuple):
    """What looks like a result."""


WEIGHT = normal(4, 8)
KEPT = WEIGHT > 0


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (WEIGHT, "returned a Tensor for q_proj, where Pruned(weight, kept) is due"),
        (None, "returned None for q_proj"),
        (Two((WEIGHT, KEPT)), "returned a Two for q_proj"),
        (Pruned(WEIGHT.T, KEPT), "returned weight of q_proj as [8, 4], where the shape [4, 8] is due"),
        (Pruned(WEIGHT.double(), KEPT), "returned weight of q_proj as float64, where float32 is due"),
        (Pruned(WEIGHT.to("meta"), KEPT), "returned weight of q_proj on meta"),
        (Pruned(WEIGHT, KEPT.float()), "returned kept of q_proj as float32, where bool is due"),
        (Pruned(WEIGHT, KEPT[:2]), "returned kept of q_proj as [2, 8]"),
        (Pruned(WEIGHT, None), "returned None as kept of q_proj"),  # type: ignore[arg-type]
        (Pruned([1.0], KEPT), "returned a list as weight of q_proj"),  # type: ignore[arg-type]
    ],
)
def test_a_method_that_returns_something_else(result: Any, says: str) -> None:
    with pytest.raises(Failure) as caught:
        checked.pruned("mine", "q_proj", result, WEIGHT)
    assert str(caught.value).startswith("the method 'mine' ") and says in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (None, "returned None, where a mapping"),
        ([Unstructured(0.5)], "returned a list, where a mapping"),
        ({"a": Unstructured(0.5)}, "gave nothing for b;"),
        ({}, "gave nothing for a, b;"),
        (dict.fromkeys("abc", Unstructured(0.5)), "gave an answer for c, of which nothing was asked"),
        (dict.fromkeys("ab", 0.5), "gave a float for a, where Unstructured(sparsity) or NofM(keep, of) is due"),
        (dict.fromkeys("ab", Unstructured(1.5)), "which is no fraction of zeros from 0 to 1"),
        (dict.fromkeys("ab", Unstructured(float("nan"))), "which is no fraction of zeros from 0 to 1"),
        (dict.fromkeys("ab", Unstructured("0.5")), "which is no fraction of zeros"),  # type: ignore[arg-type]
        (dict.fromkeys("ab", NofM(5, 4)), "which is no fraction of zeros from 0 to 1"),
        (dict.fromkeys("ab", NofM(2, 0)), "which is no fraction of zeros from 0 to 1"),
    ],
)
def test_an_allocator_that_returns_something_else(answer: Any, says: str) -> None:
    with pytest.raises(Failure) as caught:
        checked.allocation("mine", answer, "ab")
    assert str(caught.value).startswith("the allocator 'mine' ") and says in str(caught.value)


GEOMETRY = Geometry(4, 8, 16, 8, 8, 2, 32, gated=True, tied=False)


@pytest.mark.parametrize(
    "answer",
    [
        *(None, (1, 2), Cut.of_blocks([1]), Plan(None), Plan(Cut.of_blocks(["1"])), Plan(Cut.of_blocks([True]))),  # type: ignore[list-item]
        *(Plan(Cut(frozenset({Unit("layer", 1)}))), Plan(tensors={"a": 1.0})),  # type: ignore[dict-item]
    ],
)
def test_a_planner_that_returns_something_else(answer: Any) -> None:
    with pytest.raises(Failure, match="the planner 'mine' "):
        checked.plan("mine", answer, GEOMETRY)


def test_a_planner_that_takes_what_is_not_there() -> None:
    with pytest.raises(Refusal, match="block 4 cannot go: the model has the blocks 0-3"):
        checked.plan("mine", Plan(Cut.of_blocks([4])), GEOMETRY)


def test_what_is_right_passes() -> None:
    assert checked.plan("none", Plan(Cut.of_blocks([1])), GEOMETRY) == Plan(Cut.of_blocks([1]))
    assert checked.allocation("uniform", {"a": NofM(0, 4)}, "a") == {"a": NofM(0, 4)}
    assert Budget(0.5).of is None and checked.pruned("mine", "a", Pruned(WEIGHT, KEPT), WEIGHT).weight is WEIGHT
