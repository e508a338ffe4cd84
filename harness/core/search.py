"""Searching for an allocation: candidates as levels per unit, moves that keep the budget, what is known of them.

A unit is a matrix or a block; its level counts steps of *kept* weights, so that more is denser: n of M, or one step of
sparsity below or above the budget. A candidate (`Candidate`) is one level per unit; Σ width · level is the budget.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any

from harness.core.allocation import Allocation, Budget, exact_levels, fit
from harness.core.interfaces import Assembler, Entry
from harness.core.pattern import NofM, Pattern, Unstructured
from harness.core.proposals import Granularity, to_sites, units_of
from harness.runtime.errors import Refusal, UserError

Candidate = tuple[int, ...]
CANDIDATE_LOGIT_BYTES = {"cpu": 1 << 24, "cuda": 1 << 29}
"""Logits of one candidate at once, in float32. Larger pieces are returned to the system and faulted in again every time
on a CPU, which took a third of a search."""


@dataclass(frozen=True)
class LevelGrid:
    """Which levels there are: every `step` of sparsity within ± `reach` of the budget, or n of M; within bounds."""

    step: float = 0.05
    reach: float = 0.2
    minimum: float = 0.0
    maximum: float = 1.0
    levels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.step <= 1 or self.reach < 0:
            raise UserError("allocator.step has to be above 0 and at most 1, allocator.reach at least 0.")
        if not 0 <= self.minimum <= self.maximum <= 1:
            raise UserError("allocator.minimum and allocator.maximum have to be 0 <= minimum <= maximum <= 1.")

    def pattern_of(self, budget: Budget) -> dict[int, Pattern]:
        """Level → pattern, sparsest first."""
        narrowed = budget.narrowed(self.levels)
        if budget.of is None:
            count = int(self.reach / self.step + 1e-9)
            zeros = {level: _clean(budget.sparsity - level * self.step) for level in range(-count, count + 1)}
            pattern_of: dict[int, Pattern] = {level: Unstructured(s) for level, s in zeros.items() if 0 <= s <= 1}
        else:
            pattern_of = {level: NofM(level, budget.of) for level in sorted(narrowed.levels)}
        within = (self.minimum - 1e-9, self.maximum + 1e-9)
        return {level: pattern for level, pattern in pattern_of.items() if within[0] <= pattern.sparsity <= within[1]}


def _clean(value: float) -> float:
    return round(value, 9) + 0.0  # no −0


class Space:
    """All candidates of a model: its units, the grid they share, and the sum that meets the budget.

    With N:M the sum is met exactly, or comes as near as levels allow. Any fraction can be had unstructured, so there a
    candidate may miss by less than one step of its largest unit, and `allocation` makes the rest up by a common shift.

    Raises:
        Refusal: no assembly of the levels meets the budget.
    """

    def __init__(
        self,
        blocks: Sequence[Sequence[str]],
        sizes: Mapping[str, int],
        budget: Budget,
        grid: LevelGrid,
        by: Granularity,
    ) -> None:
        self.budget, self.sizes, self.blocks = budget, sizes, blocks
        self.units = units_of(blocks, by)
        self.pattern_of = grid.pattern_of(budget)
        self._bounds = (grid.minimum, grid.maximum)
        self.levels = sorted(self.pattern_of)
        parameters = [sum(sizes[site] for site in unit) for unit in self.units]
        unit = math.gcd(*parameters)
        self.widths = [size // unit for size in parameters]
        exact = 0 if budget.of is None else round(sum(self.widths) * budget.of * (1 - budget.sparsity))
        self.slack = max(self.widths) // 2 if budget.of is None else 0
        self.wanted = exact
        self.wanted = self._reachable(exact, grid)

    def _reachable(self, exact: int, grid: LevelGrid) -> int:
        """The sum nearest to the exact one that some assembly has."""
        total, missed = 0, math.inf
        if self.levels:
            total = self.sum_of(self.nearest([exact / sum(self.widths)] * len(self.units)))
            missed = abs(total - exact)
        if missed > max(self.slack, sum(self.widths) / 2):
            raise Refusal(
                f"no assembly of the levels {self._levels_there_are} meets {self.budget.sparsity:.4f} zeros (bounds: "
                f"allocator.minimum={grid.minimum:g}, allocator.maximum={grid.maximum:g})."
            )
        return exact if self.slack else total

    @property
    def _levels_there_are(self) -> str:
        if self.budget.of is None:
            return f"{[round(pattern.sparsity, 4) for pattern in self.pattern_of.values()]} (fractions of zeros)"
        return f"{self.levels} of {self.budget.of}"

    def sum_of(self, candidate: Sequence[int]) -> int:
        """The budget's sum, Σ width · level."""
        return sum(width * level for width, level in zip(self.widths, candidate, strict=True))

    @cached_property
    def uniform(self) -> Candidate:
        """The candidate nearest to an even allocation."""
        return self.nearest([self.wanted / sum(self.widths)] * len(self.units))

    def nearest(self, near: Sequence[float]) -> Candidate:
        """The candidate nearest to levels that need be neither whole nor within the budget.

        Every unit is rounded; then single steps, those that distort least first, while they bring the sum closer; where
        that ends short of the budget, the exact search over all assemblies.
        """
        places = [self._place(value) for value in near]
        missing = self.wanted - sum(w * self.levels[p] for w, p in zip(self.widths, places, strict=True))
        while abs(missing) > self.slack:
            direction = 1 if missing > 0 else -1
            best: tuple[float, int, int] | None = None
            for unit, place in enumerate(places):
                if not 0 <= place + direction < len(self.levels):
                    continue
                here, there = self.levels[place], self.levels[place + direction]
                change = self.widths[unit] * (there - here)
                if abs(missing - change) < abs(missing):
                    cost = (there - near[unit]) ** 2 - (here - near[unit]) ** 2
                    best = min(best or (math.inf, 0, 0), (cost, unit, change))
            if best is None:
                return self._exactly(near)
            places[best[1]] += direction
            missing -= best[2]
        return tuple(self.levels[place] for place in places)

    def _place(self, value: float) -> int:
        return min(range(len(self.levels)), key=lambda place: abs(self.levels[place] - value))

    def _exactly(self, near: Sequence[float]) -> Candidate:
        lowest = self.levels[0]
        widths = {str(unit): width for unit, width in enumerate(self.widths)}
        levels = exact_levels(
            {name: value - lowest for name, value in zip(widths, near, strict=True)},
            widths,
            {name: [level - lowest for level in self.levels] for name in widths},
            self.wanted - lowest * sum(self.widths),
        )
        return tuple(levels[name] + lowest for name in widths)

    def patterns(self, candidate: Candidate) -> dict[str, Pattern]:
        """The pattern of every site, straight from the grid."""
        return {
            site: self.pattern_of[level] for unit, level in zip(self.units, candidate, strict=True) for site in unit
        }

    def allocation(self, candidate: Candidate) -> Allocation:
        """The candidate with the budget as its exact mean."""
        patterns = self.patterns(candidate)
        if self.budget.of is not None:
            return patterns
        proposal = {site: pattern.sparsity for site, pattern in patterns.items()}
        return fit(proposal, self.sizes, self.budget, self._bounds)

    def mutated(self, candidate: Candidate, rate: float, draw: Random) -> Candidate:
        """Every unit, one at least, goes a level up or down with probability `rate`; then the nearest candidate."""
        moved = [unit for unit in range(len(candidate)) if draw.random() < rate] or [draw.randrange(len(candidate))]
        near = self._jittered(candidate, draw)
        for unit in moved:
            near[unit] += draw.choice((-1, 1))
        return self.nearest(near)

    def crossed(self, one: Candidate, other: Candidate, draw: Random) -> Candidate:
        """Every unit from one of two parents; then the nearest candidate."""
        return self.nearest(self._jittered([draw.choice(pair) for pair in zip(one, other, strict=True)], draw))

    def switched(self, candidate: Candidate, count: int, draw: Random) -> Candidate:
        """EvoPress' mutation: one unit a level up, another a level down, `count` times."""
        near = self._jittered(candidate, draw)
        for _ in range(count):
            up, down = draw.sample(range(len(candidate)), 2) if len(candidate) > 1 else (0, 0)
            near[up] += 1
            near[down] -= 1
        return self.nearest(near)

    def _jittered(self, candidate: Sequence[int], draw: Random) -> list[float]:
        """So that chance, and not the order of the units, decides which of equal steps keeps the budget."""
        return [level + draw.uniform(-0.3, 0.3) for level in candidate]

    def proposed(self, sparsities: Sequence[float]) -> Candidate:
        """The candidate nearest to a fraction of zeros per unit."""
        return self.nearest([self._level_of(sparsity) for sparsity in sparsities])

    def of_blocks(self, values: Sequence[float]) -> list[float]:
        """One value per block → every unit has that of its block."""
        home = to_sites(self.blocks, values)
        return [home[unit[0]] for unit in self.units]

    def _level_of(self, sparsity: float) -> float:
        if self.budget.of is not None:
            return self.budget.of * (1 - sparsity)
        step = self.pattern_of[self.levels[0]].sparsity - self.pattern_of[self.levels[-1]].sparsity
        step /= max(1, self.levels[-1] - self.levels[0])
        return (self.budget.sparsity - sparsity) / step if step else 0.0


class SearchState:
    """The findings of a search, written after every generation; a killed search goes on from the last one.

    Args:
        entry: where it is kept; what it holds from before is taken up.
        assemble: makes the database of levels, once something has to be evaluated.
        windows: the windows that candidates are judged by; more may follow them, for `held_out`.
    """

    def __init__(
        self, entry: Entry, space: Space, assemble: Callable[[], Assembler], windows: int, length: int
    ) -> None:
        self._entry, self._space, self._assemble, self.windows = entry, space, assemble, windows
        self._length = length
        kept = entry.read() or {}
        self.generations: list[dict[str, Any]] = kept.get("generations", [])
        self.population: list[list[int]] = kept.get("population", [])
        self.database: dict[str, Any] = kept.get("database", {})
        self._held_out: dict[str, float] = kept.get("held_out", {})
        self._known = {(tuple(candidate), count): loss for candidate, count, loss in kept.get("known", ())}
        self._tokens = int(kept.get("tokens", 0))
        self._spent = self.generations[-1]["seconds"] if self.generations else 0.0
        self._since = time.perf_counter()
        self._assembler: Assembler | None = None

    @property
    def assembler(self) -> Assembler:
        """The assembler, made when it is first needed."""
        if self._assembler is None:
            self._assembler = self._assemble()
            self.database = dict(self._assembler.facts)
        return self._assembler

    def judge(self, candidates: Sequence[Candidate], windows: int | None = None) -> list[float]:
        """The losses of candidates on the first `windows` windows (default: all), each evaluated at most once."""
        count = self.windows if windows is None else windows
        new = [candidate for candidate in dict.fromkeys(candidates) if (candidate, count) not in self._known]
        if new:
            losses = self.assembler.losses([self._space.patterns(candidate) for candidate in new], slice(count))
            self._known |= {(candidate, count): _worst(loss) for candidate, loss in zip(new, losses, strict=True)}
            self._tokens += len(new) * count * self._length
        return [self._known[candidate, count] for candidate in candidates]

    def end_generation(self, population: Sequence[Candidate], losses: Sequence[float]) -> None:
        """Note where the search is: its population, best first, with their losses on all windows."""
        self.population = [list(candidate) for candidate in population]
        self.generations.append(
            {
                "generation": len(self.generations),
                "evaluations": len(self._known),
                "tokens": self._tokens,
                "best": losses[0],
                "mean": sum(losses) / len(losses),
                "seconds": round(self._spent + time.perf_counter() - self._since, 2),
                "genome": list(population[0]),
            }
        )
        self._save()

    def held_out(self, candidate: Candidate, windows: int) -> float | None:
        """The loss of a candidate on the windows after those it was chosen by; None without any."""
        if not windows:
            return None
        key = ",".join(map(str, candidate))
        if key not in self._held_out:
            chosen = slice(self.windows, self.windows + windows)
            self._held_out[key] = _worst(self.assembler.losses([self._space.patterns(candidate)], chosen)[0])
            self._save()
        return self._held_out[key]

    def _save(self) -> None:
        known = [[list(candidate), count, loss] for (candidate, count), loss in self._known.items()]
        self._entry.write(
            {
                "generations": self.generations,
                "population": self.population,
                "database": self.database,
                "held_out": self._held_out,
                "tokens": self._tokens,
                "known": known,
            }
        )


def _worst(loss: float) -> float:
    """A loss that is not finite is worse than any other, and JSON has no word for it."""
    return loss if math.isfinite(loss) else 1e9


def stopped(generations: Sequence[Mapping[str, Any]], patience: int) -> bool:
    """Return whether the best loss has not fallen for `patience` generations."""
    best = [generation["best"] for generation in generations]
    return len(best) > patience and min(best[:-patience]) <= min(best[-patience:])


def best_first(candidates: Iterable[Candidate], losses: Iterable[float]) -> list[tuple[Candidate, float]]:
    """Distinct candidates with their losses, best first."""
    return sorted(dict(zip(candidates, losses, strict=True)).items(), key=lambda item: item[1])
