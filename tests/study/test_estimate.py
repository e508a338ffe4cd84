"""Costs as components state them, in seconds and bytes: by hand, and for plugins of every kind."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from harness import catalogue, compose
from harness.core.allocation import Budget
from harness.core.component import HOOKS
from harness.core.costs import Cost, Work, hessian_trace, observing
from harness.core.statistic import gram, squared_norms
from harness.models.geometry import of_facts
from harness.prepare import uses_calibration
from harness.study.estimate import BACKWARD, SPEEDS, TRACED, Estimate, estimate

PLUGIN = """
from dataclasses import dataclass
from harness.catalogue import component
from harness.core.costs import Cost, fisher_trace
from harness.core.interfaces import Pruned
from harness.core.structure import Plan

@component("allocator", "traced")
@dataclass(frozen=True)
class Traced:
    windows: int = 32
    def cost(self, geometry, work):
        return fisher_trace(self.windows, geometry, work)
    def allocate(self, probe, budget):
        raise NotImplementedError

@component("allocator", "silent")
@dataclass(frozen=True)
class Silent:
    def allocate(self, probe, budget):
        raise NotImplementedError

@component("planner", "asking")
@dataclass(frozen=True)
class Asking:
    passes: int = 10
    def cost(self, geometry, work):
        return Cost(forwards=self.passes * work.tokens, working_bytes=3e12)
    def plan(self, view):
        return Plan()

@component("recovery", "training")
@dataclass(frozen=True)
class Training:
    tokens: int = 1_000_000
    def cost(self, geometry, work):
        kept = 16 * work.blocks * geometry.block_parameters
        return Cost(self.tokens, self.tokens, kept_bytes=kept, working_bytes=1e9)
    def heal(self, model, tokenizer, kept, generator):
        pass
"""
TOKENS = 128 * 2048
BLOCK, OUTSIDE = 4 * 4096**2 + 3 * 4096 * 11008, 32000 * 4096
RATE = SPEEDS["cuda", 2].rate


@pytest.fixture
def foreseen(tmp_path: Path) -> Any:
    """The estimate of LLaMA-2-7B in 16 bits on a GPU, with the components of a plugin."""
    (tmp_path / "mine.py").write_text(PLUGIN)

    def run(*overrides: str) -> Estimate:
        plugins = f"plugins=[{tmp_path / 'mine.py'}]"
        compose.register([str(tmp_path / "mine.py")])
        chosen = ["model=llama2-7b", "evaluation=[wikitext2]", "calibration=c4", "method=wanda", plugins, *overrides]
        found = estimate(compose.compose_run(chosen), "cuda")
        assert found is not None
        return found

    return run


def test_a_plugin_allocator_is_planned_by_what_it_says(foreseen: Any) -> None:
    """Four forwards a window in float32, and the memory of MSP's traces, which it takes from the same place."""
    plain, traced = foreseen(), foreseen("allocator=traced")
    forwards = 4 * 32 * 2048 * 2 * (32 * BLOCK + OUTSIDE)
    assert traced.seconds - plain.seconds == pytest.approx(forwards / TRACED)
    half = foreseen("allocator=traced", "allocator.windows=16", "scope=0-15")
    same = foreseen("scope=0-15")
    assert half.seconds - same.seconds == pytest.approx(4 * 16 * 2048 * 2 * (16 * BLOCK + OUTSIDE) / TRACED)
    assert traced.need.pruning == foreseen("allocator=isc").need.pruning > plain.need.pruning + 4 * 4 * BLOCK
    assert traced.need.waiting == 2 * plain.need.waiting  # as of every allocator that looks at inputs


def test_an_allocator_that_says_nothing_passes_once_over_the_windows(foreseen: Any) -> None:
    assert foreseen("allocator=silent") == foreseen("allocator=owl")


@pytest.mark.parametrize("method", ["wanda", "none"])
def test_planners_are_planned(foreseen: Any, method: str) -> None:
    plain = foreseen(f"method={method}", "planner=block_influence")
    asking = foreseen(f"method={method}", "planner=asking")
    once = TOKENS * 2 * (32 * BLOCK + OUTSIDE) / RATE
    assert asking.seconds - plain.seconds == pytest.approx(9 * once)
    assert asking.need.pruning > 3e12 > plain.need.pruning
    assert plain.need.waiting >= 2 * TOKENS * 4096 * 2
    if method == "wanda":
        assert plain.seconds - foreseen().seconds == pytest.approx(once)
        assert foreseen("planner=none") == foreseen()


def test_recoveries_are_planned(foreseen: Any) -> None:
    """Forward, and backward at two forwards, through the whole model; all of it there, even where blocks would wait."""
    plain, trained = foreseen(), foreseen("recovery=training")
    assert BACKWARD == 2
    assert trained.seconds - plain.seconds == pytest.approx(3 * 1e6 * 2 * (32 * BLOCK + OUTSIDE) / RATE)
    assert trained.need.recovering == 16 * 32 * BLOCK + 1e9
    assert trained.peak_bytes == trained.need.blocks + trained.need.outside + trained.need.recovering
    assert trained.need.offloaded == trained.need.activations_offloaded > plain.need.offloaded
    assert foreseen("recovery=none").need == plain.need


GEOMETRY = of_facts(
    {"family": "llama", "blocks": 4, "hidden": 64, "intermediate": 160, "heads": 4, "vocabulary": 500, "context": 128}
)
WORK = Work(2, 8, 128, 256, 128, 2, cuda=True, fast=True, budget=Budget(0.5))


def test_costs_that_follow_one_another() -> None:
    """Work and what is kept add up; steps do not overlap."""
    one, other = Cost(forwards=1, kept_bytes=2, working_bytes=3), Cost(backwards=4, kept_bytes=5, working_bytes=6)
    assert one + other == Cost(forwards=1, backwards=4, kept_bytes=7, working_bytes=6)
    assert hessian_trace(3, 5, GEOMETRY, WORK).traced == 13 * 3 * 5 * 128


def test_what_a_statistic_costs() -> None:
    assert observing(None, GEOMETRY, WORK) == observing(squared_norms, GEOMETRY, WORK) == Cost()
    seen = observing(gram, GEOMETRY, WORK)
    assert (seen.summed, seen.column_walks) == (8 * 128, 1)
    assert seen.statistic_bytes == 4 * (3 * 64**2 + 160**2)


@pytest.mark.parametrize("kind", ["method", "allocator", "planner", "recovery"])
def test_every_component_states_a_cost(kind: str) -> None:
    """Counts, not negative; whatever looks at no input has no pass over the windows."""
    catalogue.discover()
    for name in catalogue.names(kind):
        built = catalogue.build(kind, {"name": name})
        cost = built.cost(GEOMETRY, WORK)
        assert isinstance(cost, Cost) and min(vars(cost).values()) >= 0, name
        if kind == "method":
            assert bool(cost.summed) == (built.statistic not in (None, squared_norms)), name
        elif kind in HOOKS and not built.needs_calibration:
            assert cost.forwards == cost.traced == 0, name
        elif kind == "allocator":
            assert cost.forwards + cost.traced > 0, name


def test_methods_around_others_cost_what_those_do() -> None:
    def cost(name: str, **settings: Any) -> Cost:
        catalogue.discover()
        return catalogue.build("method", {"name": name, **settings}).cost(GEOMETRY, WORK)

    alps, wanda = cost("alps"), cost("wanda")
    refit = cost("wanda", refit=True)  # two split products of three halves, and ten of halves
    assert wanda == Cost() and refit.halves == 2 * 16 * GEOMETRY.solver_elements * 2 and refit.operations == 0
    assert cost("swaps", inner="alps").arithmetic() == alps.arithmetic() and alps.halves > refit.halves
    assert cost("asymmetric").arithmetic() == alps.arithmetic()
    assert cost("dsnot", inner="alps").factor_bytes == cost("swaps", inner="alps").factor_bytes == alps.factor_bytes
    assert cost("dsnot").statistic_bytes == 0 < cost("dsnot", inner="sparsegpt").statistic_bytes
    first, second = cost("sparsellm", epochs=1), cost("sparsellm", epochs=2, inner="alps")
    assert (first.column_walks, second.column_walks) == (1, 2) and first.operations == first.launches == 0
    updates = 2 * 8 * 128 * (160**2 + 7 * 64 * 160) * 2  # of gate, up and down, with the Gram matrix of p
    assert (second.operations, second.halves) == (updates, 2 * alps.halves)
    assert second.factored == 2 * alps.factored > 0


def test_calibration_is_asked_for_by_whoever_needs_it() -> None:
    compose.register()
    cfg = compose.compose_run(["method=magnitude"])
    assert not uses_calibration(cfg)
    for overrides in (["allocator=owl"], ["planner=block_influence"], ["method=wanda"], ["layer_error=true"]):
        assert uses_calibration(compose.compose_run(["method=magnitude", *overrides]))
    recovery = type("Healing", (), {"needs_calibration": True})()
    assert uses_calibration(dataclasses.replace(cfg, method=None, recovery=recovery))
