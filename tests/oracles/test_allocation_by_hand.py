"""OWL's formula and the exact budget search: numbers by hand, and trying everything."""

from __future__ import annotations

import random

import pytest
import torch
from helpers import FakeBlock, FakeView
from slow import best_levels, distortion, kept_by

from harness.allocators.owl import Owl
from harness.core import allocation
from harness.core.allocation import Budget, exact_levels, fit, mean_sparsity
from harness.core.pattern import NofM, Unstructured
from harness.runtime.errors import Refusal


def block(index: int, outliers: int, inputs: int = 10, rows: int = 10) -> FakeBlock:
    """Weights of one, `outliers` of them a hundred: with unit inputs only these exceed five times the mean."""
    weight = torch.ones(rows * inputs)
    weight[:outliers] = 100.0
    site = f"blocks.{index}"
    return FakeBlock(index, {site: weight.reshape(rows, inputs)}, {site: torch.ones(1, inputs)})


def test_owl_by_hand() -> None:
    """Shares 0, 0.02, 0.08 → density 0, 0.04, 0.16, mean 1/15 → zeros 0.7 + 1/15 − density."""
    view = FakeView([block(0, 0), block(1, 2), block(2, 8)])
    found = Owl().allocate(view, Budget(0.7))
    expected = [0.7 + 0.2 / 3, 0.7 + 0.2 / 3 - 0.04, 0.7 + 0.2 / 3 - 0.16]
    assert [found[f"blocks.{i}"].sparsity for i in range(3)] == pytest.approx(expected, abs=1e-12)


def test_owl_sees_inputs_and_threshold() -> None:
    """An input ten times as large makes outliers of its ones: 10 of 100 at mean 1.9, above 5 × but not above 6 ×."""
    loud = block(0, 0)
    loud.inputs["blocks.0"][0, 0] = 10.0
    view = FakeView([loud, block(1, 0)])
    found = Owl().allocate(view, Budget(0.5))
    assert [found[f"blocks.{i}"].sparsity for i in range(2)] == pytest.approx([0.42, 0.58], abs=1e-12)
    even = Owl(threshold=6).allocate(view, Budget(0.5))
    assert [even[f"blocks.{i}"].sparsity for i in range(2)] == pytest.approx([0.5, 0.5], abs=1e-12)


def test_owl_is_fitted_to_the_budget_by_size() -> None:
    """Blocks of 100 and 300 weights: 0.42 and 0.58 have the weighted mean 0.54, so both are shifted by −0.04."""
    loud = block(0, 0)
    loud.inputs["blocks.0"][0, 0] = 10.0
    found = Owl().allocate(FakeView([loud, block(1, 0, rows=30)]), Budget(0.5))
    assert [found[f"blocks.{i}"].sparsity for i in range(2)] == pytest.approx([0.38, 0.54], abs=1e-12)


def test_owl_in_levels() -> None:
    """0.42 and 0.58 at 2 of 4 are nearest to 0.5 and 0.5; a spread of 0.25 gives 0.25 and 0.75."""
    loud = block(0, 0)
    loud.inputs["blocks.0"][0, 0] = 10.0
    view, budget = FakeView([loud, block(1, 0)]), Budget.of_pattern(NofM(2, 4))
    assert list(Owl().allocate(view, budget).values()) == [NofM(2, 4)] * 2
    assert list(Owl(spread=0.25).allocate(view, budget).values()) == [NofM(3, 4), NofM(1, 4)]
    assert list(Owl(levels=(0, 4)).allocate(view, budget).values()) == [NofM(4, 4), NofM(0, 4)]


def problem(seed: int) -> tuple[dict[str, float], dict[str, int], Budget]:
    draw = random.Random(seed)
    sites = [f"s{i}" for i in range(draw.randint(1, 6))]
    of = draw.choice([2, 4, 4, 8])
    levels = sorted(draw.sample(range(of + 1), draw.randint(2, min(of + 1, 5))))
    widths = {site: draw.choice([1, 2, 3, 5, 7, 16]) for site in sites}
    target = draw.uniform(1 - levels[-1] / of, 1 - levels[0] / of)
    return {site: draw.uniform(0, 1) for site in sites}, widths, Budget(target, of, tuple(levels))


@pytest.mark.parametrize("seed", range(60))
def test_the_exact_search_is_as_good_as_trying_everything(seed: int) -> None:
    """Nearest sum of kept weights first, then the least squared distance to the proposal."""
    proposal, widths, budget = problem(seed)
    wanted = round(sum(widths.values()) * budget.of * (1 - budget.sparsity))
    near = {site: budget.of * (1 - sparsity) for site, sparsity in proposal.items()}
    found = exact_levels(near, widths, dict.fromkeys(near, budget.levels), wanted)
    assert set(found.values()) <= set(budget.levels)
    miss, distortions = best_levels(proposal, widths, budget.levels, budget.of, wanted)
    assert abs(kept_by(found, widths) - wanted) == miss
    expected = distortions[kept_by(found, widths)]
    assert distortion(found, proposal, widths, budget.of) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(60))
def test_a_budget_that_some_assignment_meets_is_met(seed: int) -> None:
    proposal, widths, budget = problem(seed)
    draw, sizes = random.Random(seed), {site: 24 * width for site, width in widths.items()}
    kept = sum(sizes[site] * draw.choice(budget.levels) for site in sizes)
    budget = Budget(1 - kept / sum(sizes.values()) / budget.of, budget.of, budget.levels)
    found = fit(proposal, sizes, budget)
    assert sum(sizes[site] * pattern.keep for site, pattern in found.items()) == kept
    assert {pattern.keep for pattern in found.values()} <= set(budget.levels)


WIDTHS = {
    "llama2-7b": {"q": 16, "k": 16, "v": 16, "o": 16, "gate": 43, "up": 43, "down": 43},
    "llama3-8b": {"q": 16, "k": 4, "v": 4, "o": 16, "gate": 56, "up": 56, "down": 56},
    "opt": {"q": 1, "k": 1, "v": 1, "o": 1, "fc1": 4, "fc2": 4},
}


@pytest.mark.parametrize("budget", [NofM(2, 4), NofM(4, 8), NofM(1, 4)], ids=str)
@pytest.mark.parametrize("shape", WIDTHS)
def test_a_level_is_next_to_its_proposal(shape: str, budget: NofM) -> None:
    """A proposal as gentle as OWL's never turns into a whole level more or less, in small matrices neither."""
    draw = random.Random(0)
    proposal = {}
    for index in range(24):
        block_sparsity = budget.sparsity + draw.uniform(-0.08, 0.08)
        proposal |= {f"{index}.{name}": block_sparsity for name in WIDTHS[shape]}
    sizes = {site: WIDTHS[shape][site.split(".")[1]] * 2**20 for site in proposal}
    shifted = {site: p.sparsity for site, p in fit(proposal, sizes, Budget(budget.sparsity)).items()}
    found = fit(proposal, sizes, Budget.of_pattern(budget))
    assert mean_sparsity(found, sizes) == pytest.approx(budget.sparsity, abs=1e-9)
    away = {site: (found[site].keep, budget.of * (1 - shifted[site])) for site in proposal}
    assert {site: pair for site, pair in away.items() if abs(pair[0] - pair[1]) >= 1} == {}


@pytest.mark.parametrize("seed", range(40))
def test_the_greedy_search_comes_within_half_a_level(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What very large budgets use: allowed levels, and no single step that would bring it closer."""
    monkeypatch.setattr(allocation, "EXACT_STATES", 0)
    proposal, widths, budget = problem(seed)
    sizes = {site: 8 * width for site, width in widths.items()}
    levels = tuple(range(budget.of + 1))
    found = fit(proposal, sizes, Budget(budget.sparsity, budget.of, levels))
    assert all(isinstance(pattern, NofM) and pattern.of == budget.of for pattern in found.values())
    miss = abs(mean_sparsity(found, sizes) - budget.sparsity) * sum(sizes.values()) * budget.of
    assert miss <= max(sizes.values()) / 2 + 8 * budget.of


def test_the_greedy_search_meets_equal_sizes_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocation, "EXACT_STATES", 0)
    sizes = dict.fromkeys("abcdef", 64)
    found = fit(dict(zip(sizes, [0.1, 0.3, 0.5, 0.5, 0.7, 0.9], strict=True)), sizes, Budget.of_pattern(NofM(2, 4)))
    assert mean_sparsity(found, sizes) == 0.5
    assert found["a"].sparsity <= found["c"].sparsity <= found["f"].sparsity


def test_a_shift_that_clips_still_meets_the_budget() -> None:
    """0 and 1 with a budget of 0.9: the second cannot rise, so the first takes 0.8 by itself."""
    found = fit({"a": 0.0, "b": 1.0}, {"a": 10, "b": 10}, Budget(0.9))
    assert found == {"a": Unstructured(pytest.approx(0.8)), "b": Unstructured(1.0)}


def test_a_budget_that_no_level_comes_near_is_refused() -> None:
    with pytest.raises(Refusal, match=r"no assembly of the levels \[4\] of 4 meets 0.5000 zeros"):
        fit({"a": 0.5, "b": 0.5}, {"a": 8, "b": 8}, Budget(0.5, 4, (4,)))
    assert fit({"a": 0.5}, {"a": 8}, Budget(0.5, 4, (2,))) == {"a": NofM(2, 4)}


def test_many_equal_sites_within_half_a_level_are_no_refusal() -> None:
    """30 sites with one level of 2 of 4 and a budget of 0.55: the mean misses by 0.05, a fifth of a level."""
    sizes = {f"s{i}": 64 for i in range(30)}
    found = fit(dict.fromkeys(sizes, 0.55), sizes, Budget(0.55, 4, (2,)))
    assert set(found.values()) == {NofM(2, 4)}
