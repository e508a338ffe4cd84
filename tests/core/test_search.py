"""Candidates and their moves: always on the grid, always within the budget; and what a search state remembers."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
from helpers import FakeAssembler, FakeEntry

from harness.core.allocation import Budget, mean_sparsity
from harness.core.pattern import NofM, Unstructured
from harness.core.search import Candidate, LevelGrid, SearchState, Space, best_first, stopped
from harness.runtime.errors import Refusal, UserError


def random_space(seed: int, of: int | None, units: int = 12) -> tuple[Space, int]:
    """A model of up to `units` matrices of unequal sizes, its grid bounded or narrowed, and the sum it has to have.

    The budget of N:M is the mean of some assembly of the levels, so it can be met.
    """
    draw = random.Random(seed)
    counts = [draw.randint(1, 3) for _ in range(draw.randint(1, units // 3))]
    blocks = [[f"blocks.{index}.{name}" for name in range(count)] for index, count in enumerate(counts)]
    sizes = {site: 48 * draw.choice([1, 1, 2, 3, 5, 7, 16]) for block in blocks for site in block}
    by: Any = draw.choice(["block", "matrix"])
    if of is None:
        asked = draw.choice([0.0, 0.03, 0.5, 0.7, 0.99])
        bounds = draw.choice([(0.0, 1.0), (draw.uniform(0, asked), draw.uniform(asked, 1))])
        grid = LevelGrid(draw.choice([0.05, 0.1, 0.07]), draw.choice([0.1, 0.2, 0.5]), *bounds)
        return Space(blocks, sizes, Budget(asked), grid, by), 0
    levels = tuple(sorted(draw.sample(range(of + 1), draw.randint(1, min(of, 5)))))
    grouped = blocks if by == "block" else [[site] for block in blocks for site in block]
    widths = [sum(sizes[site] for site in unit) for unit in grouped]
    chosen = [draw.choice(levels) for _ in widths]
    kept = sum(width * level for width, level in zip(widths, chosen, strict=True))
    budget = Budget(1 - kept / sum(widths) / of, of, tuple(range(of + 1)))
    return Space(blocks, sizes, budget, LevelGrid(levels=levels), by), kept // math.gcd(*widths)


def off_budget(space: Space, draw: random.Random) -> list[float]:
    """Levels that need be neither whole nor within the budget nor on the grid."""
    return [draw.uniform(space.levels[0] - 1, space.levels[-1] + 1) for _ in space.units]


def made(space: Space, draw: random.Random) -> list[Candidate]:
    """One candidate of every kind of move, from two random parents."""
    one, other = (space.nearest(off_budget(space, draw)) for _ in range(2))
    return [
        *(space.uniform, one, other),
        space.mutated(one, draw.choice([0.05, 0.3, 1.0]), draw),
        space.crossed(one, other, draw),
        space.switched(one, draw.randint(1, 3), draw),
        space.proposed([draw.uniform(-0.2, 1.2) for _ in space.units]),
    ]


@pytest.mark.parametrize("of", [None, 4, 8, 16])
def test_every_move_keeps_to_the_ladder_and_to_the_budget(of: int | None) -> None:
    for seed in range(60):
        space, wanted = random_space(seed, of)
        assert space.wanted == wanted and (of is None or space.slack == 0)
        for candidate in made(space, random.Random(seed)):
            assert len(candidate) == len(space.units) and set(candidate) <= set(space.pattern_of)
            assert abs(space.sum_of(candidate) - wanted) <= space.slack


@pytest.mark.parametrize("of", [None, 4, 8, 16])
def test_the_allocation_of_a_candidate_has_the_budget_as_its_mean(of: int | None) -> None:
    for seed in range(40):
        space, _ = random_space(seed, of)
        for candidate in made(space, random.Random(seed)):
            allocation = space.allocation(candidate)
            assert list(allocation) == list(space.sizes)
            assert mean_sparsity(allocation, space.sizes) == pytest.approx(space.budget.sparsity, abs=1e-9)
            if of is not None:
                assert allocation == space.patterns(candidate)


def test_the_exact_mean_is_a_small_common_shift_away() -> None:
    """A step of the largest matrix, spread over the model, is the most that a candidate may miss."""
    for seed in range(40):
        space, _ = random_space(seed, None)
        if not 0.2 < space.budget.sparsity < 0.8:
            continue
        for candidate in made(space, random.Random(seed)):
            pairs = zip(space.patterns(candidate).values(), space.allocation(candidate).values(), strict=True)
            away = [fitted.sparsity - pattern.sparsity for pattern, fitted in pairs if 0 < pattern.sparsity < 1]
            most = 0.1 * max(space.widths) / sum(space.widths) / 2
            assert max(away) - min(away) < 1e-6 and abs(away[0]) <= most + 1e-9


class Watched(Space):
    """Counts how often single steps did not end on the budget."""

    def _exactly(self, near: Sequence[float]) -> Candidate:
        self.__dict__["exact"] = self.__dict__.get("exact", 0) + 1
        return super()._exactly(near)


def test_where_single_steps_do_not_end_on_the_budget_the_nearest_candidate_is_found() -> None:
    """As near as the nearest of all assemblies that there are, squares weighted by size."""
    exact = 0
    for seed in range(150):
        draw = random.Random(seed)
        sizes = {f"{i}.w": draw.choice([2, 3, 5, 7]) for i in range(draw.randint(2, 5))}
        of = draw.choice([4, 8])
        levels = tuple(sorted(draw.sample(range(of + 1), draw.randint(2, 4))))
        kept = sum(size * draw.choice(levels) for size in sizes.values())
        budget = Budget(1 - kept / sum(sizes.values()) / of, of, tuple(range(of + 1)))
        space = Watched([[site] for site in sizes], sizes, budget, LevelGrid(levels=levels), "matrix")
        space.__dict__["exact"] = 0
        near = off_budget(space, draw)
        candidate = space.nearest(near)

        def distance(levels: Sequence[int], space: Space = space, near: Sequence[float] = near) -> float:
            return sum(w * (level - n) ** 2 for w, level, n in zip(space.widths, levels, near, strict=True))

        meeting = [g for g in itertools.product(levels, repeat=len(sizes)) if space.sum_of(g) == space.wanted]
        assert candidate in meeting
        if space.__dict__["exact"]:
            exact += 1
            assert distance(candidate) == pytest.approx(min(map(distance, meeting)))
    assert exact > 10


def test_the_rungs_of_a_ladder() -> None:
    """More is denser; what a bound or 0…1 cuts off is not there."""
    free = LevelGrid(step=0.1, reach=0.25).pattern_of(Budget(0.7))
    assert free == {level: Unstructured(s) for level, s in zip(range(-2, 3), (0.9, 0.8, 0.7, 0.6, 0.5), strict=True)}
    assert list(LevelGrid(step=0.1, reach=0.3).pattern_of(Budget(0.9))) == [-1, 0, 1, 2, 3]
    assert list(LevelGrid(step=0.1, reach=0.2, minimum=0.6, maximum=0.8).pattern_of(Budget(0.7))) == [-1, 0, 1]
    mixed = Budget.of_pattern(NofM(2, 4))
    assert LevelGrid(levels=(3, 1)).pattern_of(mixed) == {1: NofM(1, 4), 3: NofM(3, 4)}
    assert list(LevelGrid(minimum=0.25, maximum=0.75).pattern_of(mixed)) == [1, 2, 3]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"step": 0}, "allocator.step has to be above 0"),
        ({"step": 1.1}, "allocator.step has to be above 0"),
        ({"reach": -0.1}, "allocator.reach at least 0"),
        ({"minimum": 0.6, "maximum": 0.5}, "0 <= minimum <= maximum <= 1"),
        ({"minimum": -0.1}, "0 <= minimum"),
        ({"maximum": 1.1}, "maximum <= 1"),
    ],
)
def test_a_ladder_that_cannot_be(settings: dict[str, float], says: str) -> None:
    with pytest.raises(UserError, match=says):
        LevelGrid(**settings)


@pytest.mark.parametrize(
    ("budget", "grid", "says"),
    [
        (Budget(0.5), LevelGrid(minimum=0.6), r"meets 0.5000 zeros \(bounds: allocator.minimum=0.6"),
        (
            Budget(0.5),
            LevelGrid(maximum=0.45),
            r"\[0.45, 0.4, 0.35, 0.3\] \(fractions of zeros\).*allocator.maximum=0.45",
        ),
        (Budget(0.5), LevelGrid(minimum=0.51, maximum=0.54), r"no assembly of the levels \[\]"),
        (Budget.of_pattern(NofM(2, 4)), LevelGrid(levels=(3, 4)), r"no assembly of the levels \[3, 4\] of 4"),
        (Budget.of_pattern(NofM(2, 4)), LevelGrid(minimum=0.7), r"no assembly of the levels \[0, 1\] of 4"),
        (Budget.of_pattern(NofM(2, 4)), LevelGrid(minimum=0.3, maximum=0.4), r"no assembly of the levels \[\] of 4"),
    ],
)
def test_a_budget_that_no_assembly_meets_is_refused(budget: Budget, grid: LevelGrid, says: str) -> None:
    with pytest.raises(Refusal, match=says) as caught:
        Space([["a"], ["b"]], {"a": 32, "b": 48}, budget, grid, "matrix")
    assert "\n" not in str(caught.value)


def test_a_model_of_one_unit_stays_where_it_is() -> None:
    for budget in (Budget(0.6), Budget.of_pattern(NofM(2, 4))):
        space = Space([["a"]], {"a": 64}, budget, LevelGrid(), "block")
        assert set(made(space, random.Random(0))) == {space.uniform}
        assert space.allocation(space.uniform)["a"].sparsity == pytest.approx(budget.sparsity, abs=1e-12)


SPACE = Space([["a", "b"], ["c"]], dict.fromkeys("abc", 16), Budget(0.5), LevelGrid(step=0.1), "matrix")
EVEN, TILTED, STEEP = (0, 0, 0), (1, 0, -1), (2, 0, -2)


class CountedAssembler:
    """Makes the assembler that a search state asks for, and counts."""

    def __init__(self, judge: Any = None) -> None:
        patterns = list(SPACE.pattern_of.values())
        self.assembler = FakeAssembler(dict.fromkeys("abc", patterns), judge, facts={"levels": 5})
        self.made = 0

    def __call__(self) -> FakeAssembler:
        self.made += 1
        return self.assembler


def state(kept: dict[str, Any], counted: CountedAssembler, windows: int = 4) -> SearchState:
    return SearchState(FakeEntry(kept, "x"), SPACE, counted, windows, length=10)


def tilt(candidate: Any) -> float:
    return float(candidate["a"].sparsity)


def test_a_candidate_is_judged_once_per_number_of_windows() -> None:
    counted = CountedAssembler(tilt)
    found = state({}, counted)
    assert counted.made == 0
    assert found.judge([EVEN, TILTED, EVEN]) == [0.5, 0.4, 0.5]
    assert found.judge([TILTED, STEEP]) == [0.4, 0.3]
    assert found.judge([EVEN], windows=2) == [0.5]
    asked = [(windows.stop, tilt(candidate)) for windows, candidate in counted.assembler.asked]
    assert asked == [(4, 0.5), (4, 0.4), (4, 0.3), (2, 0.5)] and counted.made == 1


def test_a_loss_that_is_not_finite_is_the_worst() -> None:
    worst = CountedAssembler(lambda candidate: math.nan if tilt(candidate) == 0.4 else math.inf)
    losses = state({}, worst).judge([EVEN, TILTED])
    assert losses[0] == losses[1] > 1e6 and math.isfinite(losses[0])


def test_a_generation_is_what_a_next_ledger_begins_with() -> None:
    kept: dict[str, Any] = {}
    first = state(kept, CountedAssembler(tilt))
    pool = [EVEN, TILTED]
    ranked = best_first(pool, first.judge(pool))
    first.end_generation([candidate for candidate, _ in ranked], [loss for _, loss in ranked])
    first.judge([STEEP])  # of a generation that does not end
    later = CountedAssembler(tilt)
    second = state(kept, later)
    told = {key: value for key, value in second.generations[0].items() if key != "seconds"}
    assert told == {
        **{"generation": 0, "evaluations": 2, "tokens": 80, "best": 0.4, "mean": pytest.approx(0.45)},
        **{"genome": [1, 0, -1]},
    }
    assert (second.population, second.database) == ([list(TILTED), list(EVEN)], {"levels": 5})
    assert second.judge(pool) == [0.5, 0.4] and later.made == 0
    second.judge([STEEP])
    second.end_generation([STEEP], [0.3])
    assert (second.generations[1]["evaluations"], second.generations[1]["tokens"]) == (3, 120)
    assert second.generations[1]["seconds"] >= second.generations[0]["seconds"]


def test_held_out_windows_follow_those_of_the_choice() -> None:
    kept: dict[str, Any] = {}
    counted = CountedAssembler(tilt)
    found = state(kept, counted)
    assert found.held_out(EVEN, 0) is None and counted.made == 0
    assert [found.held_out(EVEN, 3), found.held_out(EVEN, 3)] == [0.5, 0.5]
    assert [windows for windows, _ in counted.assembler.asked] == [slice(4, 7)]
    later = CountedAssembler(tilt)
    assert state(kept, later).held_out(EVEN, 3) == 0.5 and later.made == 0


def test_a_search_stops_once_its_best_has_not_fallen() -> None:
    def after(*best: float, patience: int = 2) -> bool:
        return stopped([{"best": value} for value in best], patience)

    assert not after() and not after(1.0, 1.0)
    assert after(1.0, 1.0, 1.0) and after(2.0, 1.0, 1.0, 1.0)
    assert not after(1.0, 1.0, 0.9) and not after(1.0, 0.9, 0.9)
    assert after(1.0, 1.0, patience=1)


def test_best_first_has_no_doubles_and_keeps_the_order_of_equals() -> None:
    assert best_first([EVEN, TILTED, EVEN, STEEP], [0.5, 0.2, 0.5, 0.2]) == [(TILTED, 0.2), (STEEP, 0.2), (EVEN, 0.5)]
