"""What every registered allocator promises: the budget, met exactly; every site in scope; even scores, even shares."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers import ALLOCATORS, METHODS, FakeBlock, FakeView, inputs, normal, tiny, windows

from harness import catalogue
from harness.calibration.views.model import LiveModelView
from harness.core.allocation import Budget, mean_sparsity
from harness.core.interfaces import Allocator
from harness.core.pattern import NofM, Unstructured, parse_pattern
from harness.models.decoder import decoder_of
from harness.runtime.errors import UserError

NARROWED = [name for name, it in ALLOCATORS.items() if "levels" in {field.name for field in dataclasses.fields(it)}]
every_allocator = pytest.mark.parametrize("name", ALLOCATORS)


def model_probe(family: str, scope: range = range(2)) -> LiveModelView:
    model = tiny(family)
    batches = [windows(3), windows(1, seed=1)]
    return LiveModelView(decoder_of(model), batches, scope, method=METHODS["wanda"], draw=windows)


def sizes_of(view: LiveModelView | FakeView) -> dict[str, int]:
    return {site: rows * columns for site, (rows, columns) in view.shapes.items()}


def even_probe(blocks: int = 3) -> FakeView:
    """Blocks that differ in nothing but their names."""
    weights = {"up": normal(24, 16), "down": normal(16, 24, seed=1)}
    seen = {"up": inputs(40, 16), "down": inputs(40, 24)}
    named = [
        ({f"{i}.{k}": v for k, v in weights.items()}, {f"{i}.{k}": v for k, v in seen.items()}) for i in range(blocks)
    ]
    return FakeView([FakeBlock(i, *content) for i, content in enumerate(named)])


def test_the_table_holds_every_registered_allocator() -> None:
    assert {*ALLOCATORS, "file"} == set(catalogue.names("allocator")) >= {"uniform", "owl", "msp"}
    assert all(isinstance(allocator, Allocator) for allocator in ALLOCATORS.values())


@pytest.mark.parametrize("sparsity", ["0", "0.05", "0.3", "0.5", "0.7", "0.9", "0.99"])
@pytest.mark.parametrize("family", ["llama", "opt"])
@every_allocator
def test_an_unstructured_budget_is_met(name: str, family: str, sparsity: str) -> None:
    view = model_probe(family)
    allocation = ALLOCATORS[name].allocate(view, Budget.of_pattern(parse_pattern(sparsity)))
    assert list(allocation) == list(view.shapes)
    assert all(isinstance(pattern, Unstructured) and 0 <= pattern.sparsity <= 1 for pattern in allocation.values())
    assert mean_sparsity(allocation, sizes_of(view)) == pytest.approx(float(sparsity), abs=1e-9)


@pytest.mark.parametrize("sparsity", ["2of4", "1of4", "3of4", "4of8", "2of8", "4of4"])
@pytest.mark.parametrize("family", ["llama", "opt"])
@every_allocator
def test_a_mixed_budget_is_met_exactly(name: str, family: str, sparsity: str) -> None:
    view, budget = model_probe(family), Budget.of_pattern(parse_pattern(sparsity))
    allocation = ALLOCATORS[name].allocate(view, budget)
    sizes = sizes_of(view)
    assert list(allocation) == list(sizes)
    assert all(isinstance(p, NofM) and p.of == budget.of and 0 <= p.keep <= p.of for p in allocation.values())
    kept = sum(sizes[site] * pattern.keep for site, pattern in allocation.items())
    assert kept == sum(sizes.values()) * parse_pattern(sparsity).keep


@pytest.mark.parametrize("name", NARROWED)
def test_levels_are_narrowed(name: str) -> None:
    view, sizes = model_probe("llama"), sizes_of(model_probe("llama"))
    for levels, keep in [((1, 2, 3), 2), ((3, 1), 2), ((0, 4), 2), ((2,), 2)]:
        allocator = dataclasses.replace(ALLOCATORS[name], levels=levels)
        allocation = allocator.allocate(view, Budget.of_pattern(NofM(keep, 4)))
        assert {pattern.keep for pattern in allocation.values()} <= set(levels)
        assert sum(sizes[s] * p.keep for s, p in allocation.items()) == sum(sizes.values()) * keep


@pytest.mark.parametrize(
    ("levels", "asked", "says"),
    [
        ((4,), "2of4", r"no assembly of the levels \[4\] of 4 meets 0.5000 zeros"),
        ((0,), "2of4", r"no assembly of the levels \[0\] of 4"),
        ((2, 5), "2of4", r"allocator.levels=\[2, 5\] are not all within 0 to 4"),
        ((1, 2), "0.5", "allocator.levels needs a pattern"),
    ],
)
@pytest.mark.parametrize("name", NARROWED)
def test_levels_that_cannot_be(name: str, levels: tuple[int, ...], asked: str, says: str) -> None:
    allocator = dataclasses.replace(ALLOCATORS[name], levels=levels)
    with pytest.raises(UserError, match=says):
        allocator.allocate(model_probe("llama"), Budget.of_pattern(parse_pattern(asked)))


@pytest.mark.parametrize("scope", [range(1), range(1, 2)])
@every_allocator
def test_only_the_scope_is_allocated(name: str, scope: range) -> None:
    view = model_probe("llama", scope)
    allocation = ALLOCATORS[name].allocate(view, Budget(0.6))
    assert list(allocation) == [
        site for site in model_probe("llama").shapes if site.startswith(f"model.layers.{scope[0]}.")
    ]
    assert mean_sparsity(allocation, sizes_of(view)) == pytest.approx(0.6, abs=1e-9)


@pytest.mark.parametrize("asked", ["0.5", "0.7", "2of4", "2of8"])
@every_allocator
def test_equal_scores_allocate_evenly(name: str, asked: str) -> None:
    allocation = ALLOCATORS[name].allocate(even_probe(), Budget.of_pattern(parse_pattern(asked)))
    patterns, wanted = set(allocation.values()), parse_pattern(asked)
    assert len(patterns) == 1 and type(first := patterns.pop()) is type(wanted)
    assert first.sparsity == pytest.approx(wanted.sparsity, abs=1e-12)


@every_allocator
def test_nothing_is_changed_and_the_same_comes_twice(name: str) -> None:
    model = tiny("llama")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    view = LiveModelView(decoder_of(model), [windows(3)], range(2), method=METHODS["wanda"], draw=windows)
    allocations = [ALLOCATORS[name].allocate(view, Budget(0.7)) for _ in range(2)]
    assert allocations[0] == allocations[1]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
