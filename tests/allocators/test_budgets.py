"""Budgets as values, and the settings of allocators."""

from __future__ import annotations

import pytest
from helpers import FakeView

from harness.allocators.owl import Owl
from harness.allocators.uniform import Uniform
from harness.core.allocation import Budget, fit, mean_sparsity
from harness.core.pattern import NofM, Unstructured
from harness.runtime.errors import UserError


def test_budgets_of_patterns() -> None:
    assert Budget.of_pattern(Unstructured(0.7)) == Budget(0.7)
    assert Budget.of_pattern(NofM(1, 4)) == Budget(0.75, 4, (0, 1, 2, 3, 4))
    assert Budget.of_pattern(NofM(1, 4)).narrowed([3, 1]).levels == (1, 3)
    assert Budget(0.5).narrowed([]) == Budget(0.5)


def test_levels_have_to_be_levels() -> None:
    with pytest.raises(UserError, match=r"allocator.levels needs a pattern: use it with sparsity=NofM"):
        Budget(0.5, levels=(1,))
    with pytest.raises(UserError, match=r"allocator.levels=\[-1\] are not all within 0 to 4"):
        Budget(0.5, 4, (-1,))


def test_uniform_ignores_everything_but_the_names() -> None:
    assert Uniform().allocate(FakeView([]), Budget(0.5)) == {}


def test_the_mean_is_weighted() -> None:
    assert mean_sparsity({"a": Unstructured(0.0), "b": NofM(1, 4)}, {"a": 100, "b": 300}) == pytest.approx(0.5625)


@pytest.mark.parametrize("target", [0.0, 1e-6, 0.3, 0.999, 1.0])
def test_any_proposal_is_fitted(target: float) -> None:
    """Proposals beyond 0 and 1, of very unlike sizes."""
    proposal = {"a": -3.0, "b": 0.2, "c": 0.9, "d": 7.0}
    sizes = {"a": 1, "b": 1000, "c": 10**9, "d": 17}
    found = fit(proposal, sizes, Budget(target))
    assert mean_sparsity(found, sizes) == pytest.approx(target, abs=1e-9)
    values = [found[site].sparsity for site in "abcd"]
    assert values == sorted(values) and values[0] >= 0 and values[-1] <= 1


def test_a_fitted_proposal_keeps_its_distances() -> None:
    found = fit({"a": 0.4, "b": 0.5, "c": 0.7}, {"a": 5, "b": 5, "c": 10}, Budget(0.6))
    assert found["b"].sparsity - found["a"].sparsity == pytest.approx(0.1)
    assert found["c"].sparsity - found["b"].sparsity == pytest.approx(0.2)


@pytest.mark.parametrize("wrong", [{"spread": -0.1}, {"threshold": 0.0}])
def test_settings_of_owl(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"allocator.spread has to be at least 0 and allocator.threshold above 0"):
        Owl(**wrong)
