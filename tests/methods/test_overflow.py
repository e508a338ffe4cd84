"""Inputs that overflow are refused by that name: no damping mends them, and no score is worth anything."""

from __future__ import annotations

import pytest
import torch
from helpers import FakeBlock, inputs, normal, pattern

from harness.core.linalg import damped_inverse
from harness.methods.each import EachLinear
from harness.methods.magnitude import Magnitude
from harness.methods.sparsegpt import SparseGPT
from harness.methods.wanda import Wanda
from harness.runtime.errors import UserError

BAD = [float("inf"), float("nan"), 1e25]
"""The last one is finite in float32, its square is not."""


def block(bad: float) -> FakeBlock:
    seen = inputs(32, 8)
    seen[3, 5] = bad
    return FakeBlock(0, {"a": normal(4, 8), "b": normal(4, 8)}, {"a": inputs(32, 8), "b": seen})


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("method", [Wanda(), SparseGPT()], ids=["wanda", "sparsegpt"])
def test_a_site_whose_inputs_overflow(method: object, bad: float) -> None:
    with pytest.raises(UserError) as caught:
        EachLinear(method).prune_block(block(bad), dict.fromkeys("ab", pattern("0.5")))
    assert str(caught.value) == (
        "the calibration inputs of b are not finite, or too large for their squares to be: the activations overflow in "
        "this dtype; take dtype=bfloat16 or dtype=float32, or look for the weights that make them so large."
    )


def test_a_method_that_looks_at_no_inputs() -> None:
    pruned = EachLinear(Magnitude()).prune_block(block(float("nan")), dict.fromkeys("ab", pattern("0.5")))
    assert all(abs(int(one.kept.sum()) - 16) <= 1 for one in pruned.values())


@pytest.mark.parametrize("bad", BAD[:2])
def test_a_gram_matrix_that_is_not_finite_gets_no_advice_on_damping(bad: float) -> None:
    gram = torch.eye(6)
    gram[2, 2] = bad
    with pytest.raises(UserError, match="the calibration inputs of a matrix are not finite") as caught:
        damped_inverse(gram, 0.01)
    assert "damping" not in str(caught.value)


def test_a_finite_one_that_cannot_be_factorised_gets_it() -> None:
    with pytest.raises(UserError, match="cannot be factorised, even with damping 10; use more calibration windows"):
        damped_inverse(-torch.eye(4), 0.01)
