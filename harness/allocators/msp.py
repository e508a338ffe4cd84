"""MSP: mixed sparsity by Fisher trace and evolutionary search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from harness.allocators.candidates import (
    Search,
    Sensitivity,
    ranks,
    sensitivity_of,
    unit_names,
    unit_values,
    verification,
)
from harness.catalogue import component
from harness.core.allocation import Allocation, Budget
from harness.core.costs import Cost, Work, fisher_trace, hessian_trace
from harness.core.geometry import Geometry
from harness.core.interfaces import ModelView
from harness.core.rng import rng
from harness.core.search import Candidate, SearchState, Space, best_first, stopped
from harness.runtime.errors import UserError

SETTINGS = ("sensitivity", "per", "sensitivity_windows", "probes", "start", "population", "crossover", "mutation")
"""Settings that a generation's candidates depend on, beside `Search`: not how many generations there are."""


@component("allocator", "msp")
@dataclass(frozen=True)
class Msp(Search):
    """Xu et al. 2025 (arXiv 2503.11164): units that the Fisher trace calls sensitive keep more, then evolution decides.

    The paper's own settings could not be read; what it leaves open is a field. The first population gives every unit a
    share of zeros that falls with the rank of its sensitivity, from hardly to by `reach` (with `start=random` the ranks
    are shuffled: the same shares, no information). Then `population` children a generation, by crossover of two parents
    or mutation of one, kept within the budget; the best of parents and children go on. A candidate is assembled from
    matrices pruned once per level by `pruner` (null: the run's own method), and judged by its loss on `windows` further
    windows of the calibration text. `verify` also prunes one unit at a time and puts the losses into the record.
    """

    sensitivity: Sensitivity = "fisher"
    """Trace of the Fisher information, or of the loss's Hessian."""
    per: Literal["matrix", "parameter"] = "parameter"
    """Trace of a matrix that counts: whole or per parameter."""
    sensitivity_windows: int = 32
    """Calibration windows of the trace."""
    probes: int = 4
    """Rademacher probes of a Hessian trace."""
    windows: int = 4
    """Held-out windows that a candidate is judged by."""
    start: Literal["sensitivity", "random"] = "sensitivity"
    """The first population: by rank of the sensitivity, or by shuffled ranks."""
    population: int = 16
    """Parents, and children of a generation."""
    generations: int = 30
    """Generations at most."""
    patience: int = 10
    """Generations without a better candidate after which the search ends."""
    crossover: float = 0.5
    """The probability that a child has two parents."""
    mutation: float = 0.15
    """The probability that a unit of a mutant goes a level up or down."""
    verify: bool = False
    """Prune one unit at a time, too, and put the losses into the record."""

    asks_for_traces = True

    def __post_init__(self) -> None:
        if self.population < 2 or self.generations < 0 or self.patience < 1:
            raise UserError(
                "allocator.population has to be at least 2, allocator.generations at least 0 and allocator.patience at "
                "least 1."
            )
        if self.sensitivity_windows < 1 or self.probes < 1:
            raise UserError("allocator.sensitivity_windows and allocator.probes have to be at least 1.")
        if not 0 <= self.crossover <= 1 or not 0 < self.mutation <= 1:
            raise UserError("allocator.crossover has to be from 0 to 1, allocator.mutation above 0 and at most 1.")
        super().__post_init__()

    @property
    def fitness_windows(self) -> int:
        """The setting `windows`."""
        return self.windows

    def cost(self, geometry: Geometry, work: Work) -> Cost:
        """Traces, then every generation on all its windows."""
        if self.sensitivity == "fisher":
            traces = fisher_trace(self.sensitivity_windows, geometry, work)
        else:
            traces = hessian_trace(self.sensitivity_windows, self.probes, geometry, work)
        judged = (self.generations + 1) * self.population * self.windows
        return traces + self.judging(work.windows + judged, geometry, work)

    def allocate(self, view: ModelView, budget: Budget) -> Allocation:
        space = self.space(view, budget)
        traces = sensitivity_of(view, self.sensitivity, self.sensitivity_windows, self.probes)
        values = [unit_values(units, space.sizes, traces, self.per) for units in (space.units, space.blocks)]
        with self.state(view, space, SETTINGS) as state:
            if self.verify:
                named = dict(zip(unit_names(space), values[0], strict=True))
                view.log(verification=verification(space, state.assembler, named))
            while len(state.generations) <= self.generations and not stopped(state.generations, self.patience):
                self._generation(space, state, values, rng(view.seed, f"msp/{len(state.generations)}"))
            return self.conclude(view, space, state, self.generations, self.patience)

    def _generation(self, space: Space, state: SearchState, values: Sequence[Sequence[float]], draw: Random) -> None:
        parents = [tuple(candidate) for candidate in state.population]
        children = self._children(space, parents, draw) if parents else self._first(space, values, draw)
        pool = [*parents, *children]
        chosen = best_first(pool, state.judge(pool))[: self.population]
        state.end_generation([candidate for candidate, _ in chosen], [loss for _, loss in chosen])

    def _first(self, space: Space, values: Sequence[Sequence[float]], draw: Random) -> list[Candidate]:
        """The even candidate, and shares of zeros that fall with the rank more and more steeply, up to ± `reach`.

        Of matrices, every other candidate goes by the ranks of their blocks: a coarse ramp is often the better start.

        Args:
            values: the sensitivities of the units, and those of the blocks.
        """
        found = [space.uniform]
        for number in range(1, self.population):
            steepness = self.reach * number / (self.population - 1)
            coarse = self.granularity == "matrix" and number % 2 == 1
            slopes = _slopes(values[coarse])
            shared = draw.sample(slopes, len(slopes)) if self.start == "random" else slopes
            by_unit = space.of_blocks(shared) if coarse else shared
            found.append(space.proposed([space.budget.sparsity - steepness * slope for slope in by_unit]))
        return found

    def _children(self, space: Space, parents: list[Candidate], draw: Random) -> list[Candidate]:
        """Parents are drawn in tournaments of two; they stand best first."""

        def parent() -> Candidate:
            return parents[min(draw.choices(range(len(parents)), k=2))]

        children: list[Candidate] = []
        for _ in range(self.population):
            one, other = parent(), parent()
            child = space.crossed(one, other, draw) if draw.random() < self.crossover else one
            children.append(space.mutated(child, self.mutation, draw) if child in (one, other) else child)
        return children


def _slopes(values: Sequence[float]) -> list[float]:
    """Ranks from −1 (the least sensitive) to 1."""
    middle = max(1, len(values) - 1) / 2
    return [rank / middle - 1 for rank in ranks(values)]
