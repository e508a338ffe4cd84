"""Statistics against their definitions, and what must not matter to them or to what methods make of them."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import everything, hessian, inputs, normal, pattern, seen_by

from harness.core.linalg import damped_inverse
from harness.core.statistic import Gram, SquaredNorms, gram, squared_norms, together
from harness.methods.magnitude import Magnitude
from harness.methods.sparsegpt import SparseGPT
from harness.methods.wanda import Wanda
from harness.runtime.errors import UserError

PATTERNS = ["0.3", "0.5", "0.9", "2of4", "1of4", "2of8"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sums_by_definition(dtype: torch.dtype) -> None:
    seen = [inputs(20, 6, seed=i).to(dtype) for i in range(5)]
    tokens = torch.cat(seen).double()
    squares, state = seen_by(squared_norms, *seen), seen_by(gram, *seen)
    assert squares.mean_sq.dtype == state.matrix.dtype == torch.float32 and squares.windows == state.windows == 5
    torch.testing.assert_close(squares.mean_sq.double(), tokens.square().sum(0) / 5, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(state.matrix.double(), 2 / 5 * tokens.T @ tokens, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("length", [16, 20, 512])
@pytest.mark.parametrize("width", [6, 130, 192, 200, 264, 704])
def test_strips_round_as_the_released_code_does(width: int, length: int) -> None:
    """Its running mean, the whole product at a time; of which the lower triangle is factorised."""
    seen, released = [inputs(length, width, seed=i) for i in range(3)], torch.zeros(width, width)
    for number, tokens in enumerate(seen):
        released *= number / (number + 1)
        scaled = math.sqrt(2 / (number + 1)) * tokens.t().float()
        released += scaled.matmul(scaled.t())
    assert torch.equal(seen_by(gram, *seen).matrix.tril(), released.tril())


def test_the_order_of_windows_does_not_matter() -> None:
    seen = [inputs(20, 6, seed=i) for i in range(6)]
    torch.testing.assert_close(hessian(*seen), hessian(*reversed(seen)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(seen_by(squared_norms, *seen).mean_sq, seen_by(squared_norms, *reversed(seen)).mean_sq)


@pytest.mark.parametrize("split", [(1, 5), (3, 3), (0, 6), (2, 3, 1)])
def test_merged_states_have_seen_all_windows(split: tuple[int, ...]) -> None:
    seen, parts = [inputs(20, 6, seed=i) for i in range(6)], []
    both = together({"squared_norms": squared_norms, "gram": gram})
    rest = iter(seen)
    for count in split:
        state = both.init(6, torch.device("cpu"))
        for _ in range(count):
            state = both.update(state, next(rest))
        parts.append(state)
    assert both.merge is not None
    merged, alone = both.merge(parts), seen_by(both, *seen)
    assert merged["squared_norms"].windows == merged["gram"].windows == 6
    torch.testing.assert_close(merged["squared_norms"].mean_sq, alone["squared_norms"].mean_sq)
    torch.testing.assert_close(merged["gram"].matrix, alone["gram"].matrix)
    assert together({"squared_norms": squared_norms, "all": everything}).merge is None


def test_nothing_seen_is_zero() -> None:
    assert squared_norms.init(3, torch.device("cpu")).mean_sq.tolist() == [0, 0, 0]
    assert torch.equal(gram.init(2, torch.device("cpu")).matrix, torch.zeros(2, 2))


@pytest.mark.parametrize("asked", PATTERNS)
def test_permuted_outputs_permute_the_result(asked: str) -> None:
    weight, tokens = normal(12, 40), inputs(150, 40)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    for method in (Magnitude(), Wanda(), SparseGPT()):
        seen = seen_by(method.statistic, tokens)
        straight, permuted = (method.prune(w, seen, pattern(asked)) for w in (weight, weight[order]))
        assert torch.equal(permuted.kept, straight.kept[order])
        if isinstance(method, SparseGPT):
            torch.testing.assert_close(permuted.weight, straight.weight[order], rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(permuted.weight, straight.weight[order])


@pytest.mark.parametrize("scale", [2.0**-10, 1e-3, 3.0, 1e4])
@pytest.mark.parametrize("asked", PATTERNS)
def test_the_unit_of_the_inputs_does_not_matter(asked: str, scale: float) -> None:
    weight, tokens = normal(12, 40), inputs(150, 40)
    squares, state = seen_by(squared_norms, tokens), seen_by(gram, tokens)
    wanda = [Wanda().prune(weight, SquaredNorms(unit * squares.mean_sq, 1), pattern(asked)) for unit in (1, scale)]
    assert torch.equal(wanda[0].weight, wanda[1].weight)
    scaled = Gram(scale * state.matrix, state.windows)
    straight, other = (SparseGPT().prune(weight, seen, pattern(asked)) for seen in (state, scaled))
    assert torch.equal(straight.kept, other.kept)
    torch.testing.assert_close(straight.weight, other.weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("asked", PATTERNS)
def test_inputs_in_other_order_permute_wanda(asked: str) -> None:
    """Columns within a group may be permuted: whole groups of eight for N:M, any for rows."""
    weight, squares = normal(6, 40), seen_by(squared_norms, inputs(100, 40))
    order = torch.randperm(5, generator=torch.Generator().manual_seed(0))
    columns = (8 * order[:, None] + torch.arange(8)).flatten()
    straight = Wanda().prune(weight, squares, pattern(asked)).weight
    permuted = Wanda().prune(weight[:, columns], SquaredNorms(squares.mean_sq[columns], 1), pattern(asked)).weight
    assert torch.equal(permuted, straight[:, columns])


def test_wanda_with_equal_norms_is_magnitude_by_rows() -> None:
    weight, ones = normal(8, 32), SquaredNorms(torch.ones(32), 1)
    for asked in ("2of4", "1of4"):
        assert torch.equal(
            Wanda().prune(weight, ones, pattern(asked)).weight, Magnitude().prune(weight, None, pattern(asked)).weight
        )


def test_sparsegpt_with_unrelated_inputs_compensates_nothing() -> None:
    weight = normal(8, 32)
    pruned = SparseGPT().prune(weight, Gram(torch.eye(32), 1), pattern("2of4"))
    assert torch.equal(pruned.weight, Magnitude().prune(weight, None, pattern("2of4")).weight)


def test_the_factor_is_one_of_the_damped_inverse() -> None:
    matrix = hessian(inputs(60, 12))
    inverse, upper, used = damped_inverse(matrix, 0.01)
    damped = matrix.double() + 0.01 * matrix.double().diagonal().mean() * torch.eye(12, dtype=torch.float64)
    assert used == 0.01 and torch.equal(upper, upper.triu())
    for product in (upper.T @ upper, inverse):
        torch.testing.assert_close(product.double() @ damped, torch.eye(12).double(), rtol=1e-4, atol=1e-4)


def test_damping_is_raised_until_it_factors() -> None:
    """An eigenvalue of −0.05 of the mean diagonal: 0.01 fails, 0.1 holds, and the record is told."""
    matrix = torch.diag(torch.tensor([1.0, 1.0, 1.0, -0.05]))
    assert damped_inverse(matrix, 0.01).damping == pytest.approx(0.1)
    pruned = SparseGPT().prune(normal(3, 4), Gram(matrix, 1), pattern("0.5"))
    assert pruned.note == "damping 0.1" and torch.isfinite(pruned.weight).all()
    assert SparseGPT().prune(normal(3, 4), Gram(torch.eye(4), 1), pattern("0.5")).note == ""


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (
            float("nan"),
            "inputs of a matrix are not finite, or too large .*: .* take dtype=bfloat16",
        ),
        (
            float("inf"),
            "inputs of a matrix are not finite, or too large .*: .* take dtype=bfloat16",
        ),
        (-50.0, "cannot be factorised, even with damping 10; use more calibration windows"),
    ],
)
def test_a_matrix_that_cannot_be_factored_is_said_to_be(bad: float, says: str) -> None:
    matrix = torch.eye(4)
    matrix[2, 2] = bad
    with pytest.raises(UserError, match=says):
        damped_inverse(matrix, 0.01)


def test_settings_of_sparsegpt() -> None:
    for wrong in ({"damping": 0.0}, {"blocksize": 0}):
        with pytest.raises(UserError, match=r"method.damping has to be above 0"):
            SparseGPT(**wrong)
    assert "blocksize=6 is not divisible by 4" in str(SparseGPT(blocksize=6).refuses(pattern("2of4"), (4, 12)))
    assert SparseGPT(blocksize=6).refuses(pattern("2of4"), (4, 4)) is None
    assert SparseGPT(blocksize=6).refuses(pattern("0.5"), (4, 12)) is None
