"""ISC's ramp and MRP's loop: numbers by hand, on matrices of unequal sizes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from helpers import FakeBlock, FakeView

from harness import catalogue
from harness.allocators.isc import Isc
from harness.allocators.mrp import Mrp
from harness.core.allocation import Budget, mean_sparsity
from harness.core.interfaces import Trace
from harness.core.pattern import NofM, Pattern
from harness.runtime.errors import Refusal, UserError

SHAPES = {"0.a": (4, 8), "0.b": (8, 8), "1.a": (4, 8), "1.b": (8, 8)}
SIZES = {site: rows * columns for site, (rows, columns) in SHAPES.items()}


@dataclass
class Traced(FakeView):
    """A model whose Hessian has these traces, those of norm weights too; what was asked for is noted."""

    traces: Mapping[str, float] = field(default_factory=dict)
    asked: list[tuple[Any, ...]] = field(default_factory=list)

    def hessian_trace(self, windows: int, probes: int, draws: str) -> dict[str, Trace]:
        self.asked.append((windows, probes, draws))
        return {site: Trace(value, 0.5) for site, value in self.traces.items()}


def traced(traces: Mapping[str, float], shapes: Mapping[str, tuple[int, int]] = SHAPES, blocks: int = 2) -> Traced:
    content = [
        {site: torch.zeros(shape) for site, shape in shapes.items() if site.startswith(f"{index}.")}
        for index in range(blocks)
    ]
    return Traced([FakeBlock(index, weights, {}) for index, weights in enumerate(content)], traces=traces)


def means(*values: float) -> dict[str, float]:
    """The traces whose means over the diagonal are these."""
    return {site: value * SIZES[site] for site, value in zip(SIZES, values, strict=True)}


def zeros(allocation: Mapping[str, Pattern]) -> list[float]:
    return [pattern.sparsity for pattern in allocation.values()]


def test_isc_by_hand() -> None:
    """Ranks 3, 0, 1, 2 → kept 0.6, 0.4, 7/15, 8/15 at S = 0.5, weighted mean 0.48889; so 1/90 more of every one."""
    view = traced(means(4.0, -1.0, 2.0, 3.0))
    found = Isc().allocate(view, Budget(0.5))
    kept = [0.6, 0.4, 0.4 + 0.2 / 3, 0.4 + 0.4 / 3]
    missing = 0.5 - sum(density * size for density, size in zip(kept, SIZES.values(), strict=True)) / sum(
        SIZES.values()
    )
    assert missing == pytest.approx(1 / 90)
    assert zeros(found) == pytest.approx([1 - density - missing for density in kept], abs=1e-12)
    assert view.asked == [(16, 4, "gaussian")]
    assert (
        view.diagnostics["sensitivity"]["kind"] == "hessian" and view.diagnostics["sensitivity"]["stderr"]["0.a"] == 0.5
    )


def test_isc_divides_a_trace_by_the_size_of_its_diagonal() -> None:
    """Equal traces: the smaller matrix is the more sensitive one."""
    found = Isc().allocate(traced(dict.fromkeys(SIZES, 64.0)), Budget(0.5))
    assert found["0.a"].sparsity < found["0.b"].sparsity


def test_equal_sensitivities_share_the_mean_of_their_ranks() -> None:
    """Ranks 0.5, 0.5, 2.5, 2.5: kept ± 2/3 of the spread, and both sizes are in either half."""
    found = Isc().allocate(traced(means(1.0, 1.0, 5.0, 5.0)), Budget(0.6))
    assert zeros(found) == pytest.approx([0.6 + 0.2 / 3] * 2 + [0.6 - 0.2 / 3] * 2, abs=1e-12)


def test_isc_per_block_sums_means_over_its_matrices() -> None:
    """1 + 4 of the first is less than 3 + 3 of the second; with sums of traces it would be more."""
    found = Isc(granularity="block", spread=0.2).allocate(traced(means(1.0, 4.0, 3.0, 3.0)), Budget(0.5))
    assert zeros(found) == pytest.approx([0.7, 0.7, 0.3, 0.3], abs=1e-12)


def test_isc_in_levels_and_by_fisher() -> None:
    """Kept by the Hessian 0.5 ± 2/3 of the spread; the made-up Fisher trace is the same for all, so all are even."""
    view, budget = traced(means(1.0, 1.0, 5.0, 5.0)), Budget.of_pattern(NofM(2, 4))
    assert list(Isc(spread=0.375).allocate(view, budget).values()) == [NofM(1, 4)] * 2 + [NofM(3, 4)] * 2
    assert set(Isc(spread=0.375, sensitivity="fisher").allocate(view, budget).values()) == {NofM(2, 4)}


LARGE = {f"{block}.{name}": shape for block in range(3) for name, shape in {"q": (4, 4), "up": (4, 12)}.items()}
TRACES = {"0.q": -9.0, "0.up": 20.0, "1.q": 11.0, "1.up": 15.0, "2.q": 30.0, "2.up": -25.0}
NORMS = {"0.norm": 1.0, "1.norm": -2.0, "2.norm": 12.0}


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.6, 0.7])
def test_the_released_ramp_of_matrices(sparsity: float) -> None:
    """From 0.4 kept, by the place of |trace| among those of the matrices and the norm weights; nothing is fitted."""
    view = traced(TRACES | NORMS, LARGE, blocks=3)
    found = Isc(variant="released").allocate(view, Budget(sparsity))
    everything = sorted(abs(value) for value in (TRACES | NORMS).values())
    assert everything == [1, 2, 9, 11, 12, 15, 20, 25, 30]
    places = {"0.q": 2, "0.up": 6, "1.q": 3, "1.up": 5, "2.q": 8, "2.up": 7}
    assert places == {site: bisect_left(everything, abs(value)) for site, value in TRACES.items()}
    top = 2 * (1 - sparsity) - 0.4
    kept = [0.4 + (top - 0.4) * place / 8 for place in places.values()]
    assert zeros(found) == pytest.approx([1 - density for density in kept], abs=1e-12)
    assert view.asked == [(1, 1, "rademacher")]


def test_equal_traces_take_the_first_place_of_theirs_in_the_released_ramp() -> None:
    found = Isc(variant="released").allocate(traced({"0.a": 5, "0.b": -5, "1.a": 5, "1.b": 9}), Budget(0.5))
    assert zeros(found) == pytest.approx([0.6, 0.6, 0.6, 0.4], abs=1e-12)


def test_what_the_released_ramp_comes_to() -> None:
    """Norm weights take the low ranks: fewer zeros than the 0.5 asked; above 0.6 the sensitive lose the most."""
    view = traced(TRACES | NORMS, LARGE, blocks=3)
    sizes = {site: rows * columns for site, (rows, columns) in LARGE.items()}
    half, steep = (Isc(variant="released").allocate(view, Budget(sparsity)) for sparsity in (0.5, 0.7))
    assert 0.45 < mean_sparsity(half, sizes) < 0.5
    assert half["2.q"].sparsity < half["0.q"].sparsity and steep["2.q"].sparsity > steep["0.q"].sparsity
    even = Isc(variant="released").allocate(view, Budget(0.6))
    assert zeros(even) == pytest.approx([0.6] * 6, abs=1e-12)


@pytest.mark.parametrize("sparsity", [0.4, 0.5, 0.6])
def test_the_released_ramp_of_blocks_has_the_mean_density_that_is_asked_as_zeros(sparsity: float) -> None:
    """Sums of |trace| with the norm weights': 30, 28 and 67, so ranks 1, 0, 2 of a ramp that starts at 0.3."""
    view = traced(TRACES | NORMS, LARGE, blocks=3)
    found = Isc(variant="released", granularity="block").allocate(view, Budget(sparsity))
    step = sparsity - 0.3
    kept = [0.3 + step * rank for rank in (1, 0, 2)]
    assert sum(kept) / 3 == pytest.approx(sparsity)
    assert zeros(found) == pytest.approx([1 - density for density in kept for _ in range(2)], abs=1e-12)


def test_norm_weights_count_in_their_block() -> None:
    loud = traced(TRACES | NORMS | {"1.norm": 1000.0}, LARGE, blocks=3)
    found = Isc(variant="released", granularity="block").allocate(loud, Budget(0.5))
    assert found["1.q"].sparsity == pytest.approx(0.3) == found["1.up"].sparsity


def test_where_the_released_code_fails_it_is_refused() -> None:
    view = traced(TRACES | NORMS, LARGE, blocks=3)
    for sparsity in (0.3, 0.2, 0.7, 0.8):
        with pytest.raises(Refusal, match=f"no step at {sparsity:g} zeros"):
            Isc(variant="released", granularity="block").allocate(view, Budget(sparsity))
    with pytest.raises(Refusal, match="has no N:M"):
        Isc(variant="released").allocate(view, Budget.of_pattern(NofM(2, 4)))


def marked(index: int, *outliers: int, rows: int = 10) -> FakeBlock:
    """Matrices of ones, each with so many outliers a hundred, which alone exceed five times the mean score."""
    weights, seen = {}, {}
    for number, count in enumerate(outliers):
        weight = torch.ones(rows * 10)
        weight[:count] = 100.0
        weights[f"{index}.{number}"], seen[f"{index}.{number}"] = weight.reshape(rows, 10), torch.ones(1, 10)
    return FakeBlock(index, weights, seen)


@dataclass
class Redundant(FakeView):
    """Pruned, its blocks have these outliers, turn by turn (the last ones for good); what was asked is noted."""

    turns: Sequence[Sequence[FakeBlock]] = ()
    seen: list[tuple[Any, list[float]]] = field(default_factory=list)

    def pruned(
        self, method: Any, allocation: Mapping[str, Pattern], *, reuse_prefix: bool = False
    ) -> Iterator[FakeBlock]:
        """All blocks, whatever is left as it was."""
        self.seen.append((method, zeros(allocation)))
        yield from (self.turns or [self.content])[min(len(self.seen), len(self.turns) or 1) - 1]


def test_mrp_by_hand() -> None:
    """From 0.35 each: the first, without outliers, up to 0.65 in six turns; what is left takes three of the second."""
    view = Redundant([marked(0, 0), marked(1, 2), marked(2, 8)], method="the run's own")
    found = Mrp().allocate(view, Budget(0.5))
    assert zeros(found) == pytest.approx([0.65, 0.5, 0.35], abs=1e-9)
    assert view.diagnostics == {"turns": 9} and len(view.seen) == 9
    assert view.seen[0] == ("the run's own", [0.35, 0.35, 0.35])
    assert view.seen[2][1] == pytest.approx([0.45, 0.35, 0.35])
    assert view.seen[-1][1] == pytest.approx([0.65, 0.45, 0.35])


def test_mrp_looks_at_the_model_as_it_is_pruned_so_far() -> None:
    """Outliers come to light in the first after two turns, and in the second after two more."""
    dense = [marked(0, 2), marked(1, 2), marked(2, 2)]
    turns = [[marked(i, count) for i, count in enumerate(counts)] for counts in [(0, 4, 8)] * 2 + [(9, 4, 8)] * 2]
    view = Redundant(dense, turns=[*turns, [marked(0, 9), marked(1, 9), marked(2, 0)]])
    found = Mrp().allocate(view, Budget(0.5))
    assert zeros(found) == pytest.approx([0.45, 0.45, 0.6], abs=1e-9)


def test_outliers_are_a_share_of_what_is_kept() -> None:
    """5 and 7 of 100: after four turns 5 of 45 kept are more than 7 of 65, after one of the other 7 of 60 are more."""
    found = Mrp().allocate(Redundant([marked(0, 5), marked(1, 7)]), Budget(0.5))
    assert zeros(found) == pytest.approx([0.6, 0.4], abs=1e-9)


def test_a_threshold_is_that_of_the_dense_model() -> None:
    """Four nines of 100 weights exceed five times the mean 1.32; with the pruned model's mean, 5.2, they would not."""
    dense, pruned = ([marked(i, count) for i in range(2)] for count in (0, 0))
    dense[0].weights["0.0"].flatten()[:4] = 9.0
    pruned[0].weights["0.0"].copy_(torch.full((10, 10), 5.0))
    pruned[0].weights["0.0"].flatten()[:4] = 9.0
    found = Mrp().allocate(Redundant(dense, turns=[pruned]), Budget(0.5))
    assert zeros(found) == pytest.approx([0.35, 0.65], abs=1e-9)


@pytest.mark.parametrize("maximum", [0.5, 0.52, 0.6, 1.0])
def test_no_unit_goes_beyond_the_maximum(maximum: float) -> None:
    """0.705 of the first would be what all have to lose."""
    view = Redundant([marked(0, 0), marked(1, 2, rows=30), marked(2, 8, rows=7)])
    found = Mrp(maximum=maximum).allocate(view, Budget(0.5))
    assert max(zeros(found)) == found["0.0"].sparsity == pytest.approx(maximum, abs=1e-6)
    assert mean_sparsity(found, {"0.0": 100, "1.0": 300, "2.0": 70}) == pytest.approx(0.5, abs=1e-9)


def test_the_step_decays_to_the_least_one() -> None:
    """0.1 · 0.5, 0.1 · 0.25, then 0.02."""
    view = Redundant([marked(0, 0), marked(1, 9)])
    Mrp(step=0.1, decay=0.5, least_step=0.02).allocate(view, Budget(0.5))
    reached = [turn[0] for _, turn in view.seen[:4]]
    assert reached == pytest.approx([0.35, 0.4, 0.425, 0.445])


def test_mrp_per_matrix_takes_as_many_a_turn_as_a_block_has() -> None:
    """Of four the two without outliers, in six turns; a block would have been judged as one."""
    view = Redundant([marked(0, 0, 9), marked(1, 8, 0)])
    found = Mrp(granularity="matrix").allocate(view, Budget(0.5))
    assert zeros(found) == pytest.approx([0.65, 0.35, 0.35, 0.65], abs=1e-9)
    assert view.diagnostics == {"turns": 6} and view.seen[1][1] == pytest.approx([0.4, 0.35, 0.35, 0.4])
    by_block = Redundant([marked(0, 0, 9), marked(1, 8, 0)])
    Mrp().allocate(by_block, Budget(0.5))
    assert by_block.seen[1][1] == pytest.approx([0.35, 0.35, 0.4, 0.4])


def test_mrp_in_levels() -> None:
    """0.65, 0.5 and 0.35 of equal sizes are nearest to 2 of 4 each; with more headroom they are not."""
    budget = Budget.of_pattern(NofM(2, 4))
    blocks = [marked(0, 0), marked(1, 2), marked(2, 8)]
    assert list(Mrp(headroom=0.25).allocate(Redundant(blocks), budget).values()) == [NofM(n, 4) for n in (1, 2, 3)]


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("isc", {"spread": -0.1}, "allocator.spread has to be at least 0"),
    ("isc", {"windows": 0}, "allocator.windows and allocator.probes at least 1"),
    ("isc", {"probes": 0}, "allocator.windows and allocator.probes at least 1"),
    ("isc", {"variant": "paper"}, "allocator.variant"),
    ("isc", {"granularity": "row"}, "allocator.granularity"),
    ("isc", {"sensitivity": "taylor"}, "allocator.sensitivity"),
    ("mrp", {"headroom": -0.1}, "allocator.headroom has to be at least 0"),
    ("mrp", {"threshold": 0}, "allocator.threshold above 0"),
    ("mrp", {"decay": 0}, "allocator.decay above 0"),
    ("mrp", {"decay": 1.1}, "at most 1"),
    ("mrp", {"step": 0}, "allocator.step and allocator.least_step have to be above 0"),
    ("mrp", {"least_step": 0}, "allocator.step and allocator.least_step have to be above 0"),
    ("mrp", {"granularity": "row"}, "allocator.granularity"),
]


@pytest.mark.parametrize(("name", "settings", "says"), BAD)
def test_settings_that_cannot_be(name: str, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        catalogue.build("allocator", {"name": name, **settings})
    assert "\n" not in str(caught.value)


def test_a_maximum_below_the_budget_is_refused() -> None:
    with pytest.raises(UserError, match=r"allocator.maximum=0.4 is below the 0.5 zeros"):
        Mrp(maximum=0.4).allocate(Redundant([marked(0, 0)]), Budget(0.5))
