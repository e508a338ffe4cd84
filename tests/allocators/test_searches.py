"""MSP and the EvoPress-style search: seeded, resumable, never worse, and what is said of settings that cannot be."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from helpers import METHODS, FakeAssembler, FakeBlock, FakeView

from harness import catalogue
from harness.core.allocation import Allocation, Budget, mean_sparsity
from harness.core.interfaces import Trace
from harness.core.pattern import NofM, Pattern
from harness.core.search import LevelGrid, Space
from harness.runtime.errors import Refusal, UserError

SHAPES = {"q": (16, 16), "up": (16, 48), "down": (48, 16)}
SIZES = {f"blocks.{i}.{name}": rows * columns for i in range(4) for name, (rows, columns) in SHAPES.items()}
FREE, MIXED = Budget(0.6), Budget.of_pattern(NofM(2, 4))
both = pytest.mark.parametrize("name", ["msp", "evopress"])

Judge = Callable[[Mapping[str, Pattern]], float]


@dataclass
class Searched(FakeView):
    """Four blocks of three matrices, whose assemblers judge by `judge`; sensitive are the last matrices."""

    content: list[FakeBlock] = field(
        default_factory=lambda: [
            FakeBlock(i, {f"blocks.{i}.{name}": torch.zeros(shape) for name, shape in SHAPES.items()}, {})
            for i in range(4)
        ]
    )
    judge: Any = None
    made: list[FakeAssembler] = field(default_factory=list)

    def fisher_trace(self, windows: int) -> dict[str, Trace]:
        return {site: Trace(float(place * size)) for place, (site, size) in enumerate(SIZES.items())}

    def assembler(self, method: Any, levels: Any, **settings: Any) -> FakeAssembler:
        self.made.append(FakeAssembler(levels, self.judge))
        return self.made[-1]

    @property
    def asked(self) -> list[tuple[int, int, tuple[Any, ...]]]:
        """First and last window and candidate of every evaluation."""
        every = [one for assembler in self.made for one in assembler.asked]
        return [(windows.start or 0, windows.stop, tuple(candidate.items())) for windows, candidate in every]

    @property
    def trajectory(self) -> list[dict[str, Any]]:
        generations = self.diagnostics["search"]["generations"]
        return [{key: value for key, value in one.items() if key != "seconds"} for one in generations]


def noise(candidate: Mapping[str, Pattern]) -> float:
    """The same for the same candidate, and else anything."""
    return random.Random(str([(site, str(p), round(p.sparsity, 6)) for site, p in candidate.items()])).random()


def far_from(hidden: Allocation) -> Judge:
    def judge(candidate: Mapping[str, Pattern]) -> float:
        return sum((pattern.sparsity - hidden[site].sparsity) ** 2 for site, pattern in candidate.items())

    return judge


def searcher(name: str, **settings: Any) -> Any:
    """Four windows, six generations; no held-out windows, so that all evaluations are the search's."""
    own: dict[str, Any] = {"generations": 6, "held_out": 0}
    own |= {"population": 6} if name == "msp" else {"offspring": 8, "survivors": (3, 1), "stages": (1, 4)}
    return replace(catalogue.build("allocator", {"name": name}), **(own | settings))


@pytest.mark.parametrize("budget", [FREE, MIXED], ids=["free", "mixed"])
@both
def test_the_same_seed_finds_the_same(name: str, budget: Budget) -> None:
    one, same, other = Searched(judge=noise), Searched(judge=noise), Searched(judge=noise, seed=1)
    first = searcher(name).allocate(one, budget)
    assert searcher(name).allocate(same, budget) == first
    assert (same.asked, same.trajectory) == (one.asked, one.trajectory)
    searcher(name).allocate(other, budget)
    assert other.asked != one.asked
    assert mean_sparsity(first, SIZES) == pytest.approx(budget.sparsity, abs=1e-9)


class Killed(Exception):
    """The machine went away."""


def killing(judge: Judge, after: int) -> Judge:
    left = [after]

    def until(candidate: Mapping[str, Pattern]) -> float:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return judge(candidate)

    return until


@pytest.mark.parametrize("after", [0, 1, 9, 17, 26])
@both
def test_a_killed_search_goes_on_from_its_last_generation(name: str, after: int) -> None:
    """It ends as one that nobody killed, and evaluates nothing again that a finished generation knows."""
    kept: dict[str, Any] = {}
    whole = Searched(judge=noise)
    expected = searcher(name).allocate(whole, FREE)
    with pytest.raises(Killed):
        searcher(name).allocate(Searched(judge=killing(noise, after), kept=kept), FREE)
    finished = next((state["generations"][-1]["evaluations"] for state in kept.values()), 0)
    resumed = Searched(judge=noise, kept=kept)
    assert searcher(name).allocate(resumed, FREE) == expected
    assert finished <= after and resumed.asked == whole.asked[finished:]
    assert resumed.trajectory == whole.trajectory
    assert {key: resumed.diagnostics["search"][key] for key in ("evaluations", "tokens")} == {
        key: whole.diagnostics["search"][key] for key in ("evaluations", "tokens")
    }


@both
def test_a_search_that_is_killed_again_and_again_ends_as_any_other(name: str) -> None:
    whole, kept = Searched(judge=noise), {}
    expected = searcher(name).allocate(whole, MIXED)
    for _ in range(100):
        view = Searched(judge=killing(noise, 14), kept=kept)
        try:
            found = searcher(name).allocate(view, MIXED)
            break
        except Killed:
            continue
    assert (found, view.trajectory) == (expected, whole.trajectory)


@both
def test_more_generations_continue_a_search_and_fewer_take_its_earlier_state(name: str) -> None:
    fresh = {count: Searched(judge=noise) for count in (2, 6)}
    expected = {count: searcher(name, generations=count).allocate(fresh[count], FREE) for count in (2, 6)}
    kept: dict[str, Any] = {}
    few, more, again = (Searched(judge=noise, kept=kept) for _ in range(3))
    assert searcher(name, generations=2).allocate(few, FREE) == expected[2]
    assert searcher(name, generations=6).allocate(more, FREE) == expected[6]
    assert few.asked + more.asked == fresh[6].asked
    assert searcher(name, generations=2).allocate(again, FREE) == expected[2]
    assert again.made == [] and again.trajectory == fresh[2].trajectory
    assert again.diagnostics["search"]["evaluations"] == fresh[2].diagnostics["search"]["evaluations"]


@both
def test_other_settings_are_another_search(name: str) -> None:
    kept: dict[str, Any] = {}
    searcher(name).allocate(Searched(judge=noise, kept=kept), FREE)
    changes: list[dict[str, Any]] = [{"step": 0.1}, {"reach": 0.1}, {"objective": "nll"}, {"pruner": METHODS["wanda"]}]
    changes += [{"inputs": "pruned"}, {"granularity": "block"}, {"held_out": 1}]
    changes += [{"population": 5}] if name == "msp" else [{"stages": (1, 3)}]
    for number, change in enumerate(changes, 2):
        searcher(name, **change).allocate(Searched(judge=noise, kept=kept), FREE)
        assert len(kept) == number, change
    searcher(name).allocate(Searched(judge=noise, kept=kept), Budget(0.5))
    searcher(name).allocate(Searched(judge=noise, kept=kept, seed=1), FREE)
    assert len(kept) == len(changes) + 3
    elsewhere = {"database": "disk", "database_gib": 1.0, "generations": 3}
    searcher(name, **elsewhere).allocate(Searched(judge=noise, kept=kept), FREE)
    assert len(kept) == len(changes) + 3


@pytest.mark.parametrize("budget", [FREE, MIXED], ids=["free", "mixed"])
@both
def test_nothing_is_evaluated_twice(name: str, budget: Budget) -> None:
    view = Searched(judge=noise)
    searcher(name, generations=12, held_out=2).allocate(view, budget)
    assert len(view.asked) == len(set(view.asked)) and len(view.made) == 1
    own = [one for one in view.asked if one[0] == 0]
    assert view.diagnostics["search"]["evaluations"] == len(own)
    assert view.diagnostics["search"]["tokens"] == sum(stop for _, stop, _ in own) * view.window
    assert {(start, stop) for start, stop, _ in view.asked if start} == {(4, 6)}


@both
def test_a_search_lives_with_few_candidates(name: str) -> None:
    """Four blocks and two levels make six candidates within the budget."""
    view = Searched(judge=noise)
    searcher(name, granularity="block", levels=(1, 3), generations=12).allocate(view, MIXED)
    assert len({candidate for _, stop, candidate in view.asked if stop == 4}) <= 6
    assert len(view.asked) == len(set(view.asked))


@pytest.mark.parametrize("seed", range(3))
@both
def test_the_best_never_gets_worse(name: str, seed: int) -> None:
    view = Searched(judge=noise, seed=seed)
    searcher(name, generations=10).allocate(view, FREE)
    best = [generation["best"] for generation in view.trajectory]
    assert best == sorted(best, reverse=True)
    assert all(one["best"] <= one["mean"] + 1e-12 for one in view.trajectory)
    assert [one["generation"] for one in view.trajectory] == list(range(len(best)))


@pytest.mark.parametrize("budget", [FREE, MIXED], ids=["free", "mixed"])
@both
def test_a_planted_optimum_is_approached(name: str, budget: Budget) -> None:
    """It is some moves away from the even allocation."""
    space = Space([list(SIZES)], SIZES, budget, LevelGrid(), "matrix")
    hidden = space.patterns(space.switched(space.uniform, 8, random.Random(5)))
    view = Searched(judge=far_from(hidden))
    found = searcher(name, generations=40).allocate(view, budget)
    best = [generation["best"] for generation in view.trajectory]
    assert best[-1] < best[0] / 2
    assert far_from(hidden)(found) < far_from(hidden)(space.patterns(space.uniform)) / 2


def test_msp_stops_where_nothing_falls_any_more() -> None:
    """A later search that is more patient goes on from there, a less patient one ends where it would have ended."""
    kept: dict[str, Any] = {}
    for patience, generations in ((3, 4), (5, 6), (2, 3)):
        view = Searched(kept=kept)
        searcher("msp", generations=20, patience=patience).allocate(view, FREE)
        assert len(view.trajectory) == generations
    assert view.made == []


def test_evopress_keeps_the_parent_on_ties() -> None:
    view = Searched()
    found = searcher("evopress").allocate(view, FREE)
    (state,) = view.kept.values()
    even = [0] * len(SIZES)
    assert state["population"] == [even] and {tuple(one["genome"]) for one in state["generations"]} == {tuple(even)}
    assert [pattern.sparsity for pattern in found.values()] == pytest.approx([0.6] * len(SIZES))
    assert len(view.asked) > 30


def test_evopress_judges_more_windows_the_fewer_are_left() -> None:
    """The even candidate, then eight on one window, three of them and the parent on four."""
    view = Searched(judge=noise)
    searcher("evopress", generations=1, offspring=8).allocate(view, FREE)
    stops = [stop for _, stop, _ in view.asked]
    assert stops[:2] == [1, 4] and stops[2:-3] == [1] * len(stops[2:-3]) and stops[-3:] == [4] * 3


@pytest.mark.parametrize("granularity", ["matrix", "block"])
def test_a_random_start_has_the_same_shares_shuffled(granularity: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    proposed: list[list[float]] = []

    def noted(space: Space, zeros: list[float]) -> Any:
        proposed.append(list(zeros))
        return space.uniform

    monkeypatch.setattr(Space, "proposed", noted)
    for start in ("sensitivity", "random"):
        settings: Any = {"start": start, "granularity": granularity, "generations": 0, "population": 8}
        searcher("msp", **settings).allocate(Searched(), FREE)
    informed, shuffled = proposed[:7], proposed[7:]
    assert len(shuffled) == 7 and informed != shuffled
    assert [sorted(zeros) for zeros in informed] == [sorted(zeros) for zeros in shuffled]


@pytest.mark.parametrize("granularity", ["matrix", "block"])
def test_msp_starts_with_more_kept_where_the_trace_is_larger(granularity: Any) -> None:
    """The steepest candidate goes from `reach` above the budget to `reach` below, by rank."""
    view = Searched()
    settings: Any = {"generations": 0, "population": 5, "granularity": granularity, "reach": 0.2}
    searcher("msp", **settings).allocate(view, FREE)
    first, *_, steepest = [dict(candidate) for _, _, candidate in view.asked]
    assert {pattern.sparsity for pattern in first.values()} == {0.6}
    zeros = [pattern.sparsity for pattern in steepest.values()]
    assert zeros == sorted(zeros, reverse=True) and zeros[0] - zeros[-1] >= 0.3


def test_msp_tells_its_sensitivity_and_what_one_unit_alone_costs() -> None:
    view = Searched(judge=lambda candidate: sum(p.sparsity * SIZES[s] for s, p in candidate.items()))
    searcher("msp", verify=True, per="matrix").allocate(view, FREE)
    assert view.diagnostics["sensitivity"]["value"] == {
        site: place * size for place, (site, size) in enumerate(SIZES.items())
    }
    checked = view.diagnostics["verification"]
    assert [unit["unit"] for unit in checked["units"]] == list(SIZES) and checked["dense"] == 0
    assert [unit["loss"] for unit in checked["units"]] == pytest.approx([0.6 * size for size in SIZES.values()])
    assert -1 <= checked["spearman"] <= 1


@both
def test_bounds_hold_for_every_candidate(name: str) -> None:
    view = Searched(judge=noise)
    searcher(name, minimum=0.55, maximum=0.7).allocate(view, FREE)
    zeros = {pattern.sparsity for _, _, candidate in view.asked for _, pattern in candidate}
    assert {0.55, 0.7} <= zeros and min(zeros) == 0.55 and max(zeros) == 0.7


@pytest.mark.parametrize("bounds", [{"minimum": 0.7}, {"maximum": 0.5}, {"minimum": 0.61, "maximum": 0.64}])
@both
def test_bounds_that_exclude_the_budget_are_refused_before_anything_is_evaluated(name: str, bounds: Any) -> None:
    view = Searched()
    with pytest.raises(Refusal, match=r"meets 0\.6000 zeros \(bounds: allocator\.minimum="):
        searcher(name, **bounds).allocate(view, FREE)
    assert view.made == [] and view.kept == {}


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("msp", {"population": 1}, "allocator.population has to be at least 2"),
    ("msp", {"generations": -1}, "allocator.generations at least 0"),
    ("msp", {"patience": 0}, "allocator.patience at least 1"),
    ("msp", {"crossover": 1.5}, "allocator.crossover has to be from 0 to 1"),
    ("msp", {"mutation": 0}, "allocator.mutation above 0"),
    ("msp", {"windows": 0}, "allocator.windows has to be at least 1"),
    ("msp", {"sensitivity": "taylor"}, "allocator.sensitivity"),
    ("msp", {"start": "even"}, "allocator.start"),
    ("msp", {"pruner": "wandaa"}, "wanda"),
    ("evopress", {"stages": ()}, "allocator.survivors has to be as long as allocator.stages"),
    ("evopress", {"survivors": (8, 1)}, "allocator.survivors has to be as long as allocator.stages"),
    ("evopress", {"survivors": (8, 4, 2)}, "to end with 1"),
    ("evopress", {"stages": (4, 1, 16)}, r"allocator.stages \(windows\) have to rise"),
    ("evopress", {"stages": (0, 1, 2)}, "from at least 1"),
    ("evopress", {"survivors": (2, 8, 1)}, "allocator.survivors to fall"),
    ("evopress", {"offspring": 7}, "allocator.offspring has to be at least the first of allocator.survivors"),
    ("evopress", {"generations": -1}, "allocator.generations at least 0"),
    ("evopress", {"switches": 0}, "allocator.switches at least 1"),
]
SHARED: list[tuple[dict[str, Any], str]] = [
    ({"held_out": -1}, "allocator.held_out at least 0"),
    ({"database_gib": 0}, "allocator.database_gib has to be above 0"),
    ({"step": 0}, "allocator.step has to be above 0"),
    ({"reach": -0.1}, "allocator.reach at least 0"),
    ({"minimum": 0.8, "maximum": 0.5}, "minimum <= maximum"),
    ({"granularity": "row"}, "allocator.granularity"),
    ({"objective": "ppl"}, "allocator.objective"),
    ({"database": "tape"}, "allocator.database"),
]
BAD += [(name, settings, says) for name in ("msp", "evopress") for settings, says in SHARED]


@pytest.mark.parametrize(("name", "settings", "says"), BAD)
def test_settings_that_cannot_be(name: str, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        catalogue.build("allocator", {"name": name, **settings})
    assert "\n" not in str(caught.value)
