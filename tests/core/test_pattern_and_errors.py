"""Patterns as users write them, the function that chooses zeros at its edges, and small values of the core."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers import normal

from harness.core.pattern import NofM, Unstructured, keep, misfit, parse_pattern, satisfies
from harness.core.rng import rng
from harness.runtime.errors import Refusal, UserError, unknown


@pytest.mark.parametrize(
    ("text", "expected", "sparsity"),
    [
        (0.7, Unstructured(0.7), 0.7),
        ("0", Unstructured(0.0), 0.0),
        ("5e-1", Unstructured(0.5), 0.5),
        ("2of4", NofM(2, 4), 0.5),
        (" 1of4 ", NofM(1, 4), 0.75),
        ("16of32", NofM(16, 32), 0.5),
        ("4of4", NofM(4, 4), 0.0),
    ],
)
def test_what_users_write(text: object, expected: object, sparsity: float) -> None:
    assert parse_pattern(text) == expected
    assert parse_pattern(text).sparsity == sparsity


@pytest.mark.parametrize(
    "text", ["5of4", "0of4", "0of0", "1.2", 1, -0.1, "nan", "inf", "half", "2:4", "2of", "", None, True]
)
def test_what_they_must_not(text: object) -> None:
    with pytest.raises(UserError, match=r"sparsity=.*(2of4|below 1)") as caught:
        parse_pattern(text)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_names_of_patterns() -> None:
    assert (str(Unstructured(0.3)), str(NofM(2, 8))) == ("unstructured", "2of8")


def test_ties_go_in_order_of_columns() -> None:
    even = torch.ones(2, 4)
    assert keep(even, Unstructured(0.5)).tolist() == [[False, False, True, True]] * 2
    assert keep(even, NofM(1, 4)).tolist() == [[False, False, False, True]] * 2
    assert not keep(even, Unstructured(0.5), quota="threshold").any()  # all equal the threshold


def test_edges_of_the_quota() -> None:
    score = normal(3, 10).abs()
    assert keep(score, Unstructured(0.0), quota="threshold").all()
    assert keep(score, Unstructured(0.09)).all()  # ⌊0.9⌋ of each row
    assert (~keep(score, Unstructured(0.09), quota="threshold")).sum(dim=1).tolist() == [1, 1, 1]
    assert not keep(score, Unstructured(1.0)).any() and not keep(score, NofM(0, 5)).any()
    assert keep(score, Unstructured(1.0), "matrix", "threshold").sum() == 0
    assert keep(score, NofM(5, 5)).all()


def test_groups() -> None:
    score = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    assert keep(score, Unstructured(0.5), "matrix").tolist() == [[False] * 4, [True] * 4]
    assert keep(score, Unstructured(0.5), "row").tolist() == [[False, False, True, True]] * 2
    assert (~keep(score, Unstructured(0.5), "matrix", "threshold")).sum() == 5


def test_more_sparsity_keeps_a_subset() -> None:
    score = normal(6, 40).abs()
    for group in ("row", "matrix"):
        for quota in ("exact", "threshold"):
            masks = [keep(score, Unstructured(s / 10), group, quota) for s in range(10)]
            assert all((less | ~more).all() for less, more in itertools.pairwise(masks))


def test_who_satisfies_what() -> None:
    weight = torch.tensor([[1.0, 0.0, 2.0, 0.0, 0.0, 0.0, 3.0, 0.0]])
    assert satisfies(weight, NofM(2, 4)) and satisfies(weight, NofM(4, 8)) and satisfies(weight, Unstructured(0.9))
    assert not satisfies(weight, NofM(1, 4)) and satisfies(-weight, NofM(2, 4))
    assert misfit(NofM(2, 4), (3, 8)) is None and misfit(Unstructured(0.5), (3, 7)) is None
    assert "width 7 is not divisible by 4" in str(misfit(NofM(2, 4), (8, 7)))


def test_unknown_names_the_nearest() -> None:
    assert str(unknown("method", "wnada", ["wanda", "magnitude"])) == "unknown method 'wnada'; did you mean wanda?"
    assert str(unknown("method", "zzz", ["wanda", "magnitude"])) == "unknown method 'zzz'; known: magnitude, wanda."
    assert str(unknown("setting of planner", "zzz", [])) == "unknown setting of planner 'zzz'; it has none."
    assert issubclass(Refusal, UserError)


def test_draws_by_purpose_are_apart() -> None:
    assert rng(0, "recovery").random() == rng(0, "recovery").random()
    assert len({rng(seed, purpose).random() for seed in range(5) for purpose in ("a", "b")}) == 10
