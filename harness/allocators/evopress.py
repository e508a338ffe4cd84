"""An EvoPress-style search: level switches, successive halving, divergence from the dense model."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from harness.allocators.candidates import Search
from harness.catalogue import component
from harness.core.allocation import Allocation, Budget
from harness.core.interfaces import ModelView
from harness.core.rng import rng
from harness.core.search import SearchState, Space, best_first
from harness.runtime.errors import UserError


@component("allocator", "evopress")
@dataclass(frozen=True)
class EvoPress(Search):
    """Sieberling et al. 2025 (arXiv 2410.14649), as released: one survivor, `offspring` mutants of it a generation.

    A mutant switches levels min(u, v) times, u and v uniform in 1…`switches`: one matrix a level up, another one down.
    Mutants are judged on few windows first and the best of them on more: each of the `stages` (in windows) leaves its
    share of `survivors`, and in the last one the parent takes part. The released code has 400 generations of 64 mutants
    and stages of 2,048, 16,384 and 65,536 tokens.
    """

    generations: int = 30
    """Generations of the search."""
    offspring: int = 32
    """Mutants of a generation."""
    survivors: tuple[int, ...] = (8, 2, 1)
    """Mutants left by each stage; the last is 1."""
    stages: tuple[int, ...] = (1, 4, 16)
    """Calibration windows of each stage."""
    switches: int = 3
    """Level switches of a mutant, at most."""

    def __post_init__(self) -> None:
        if not self.stages or len(self.survivors) != len(self.stages) or self.survivors[-1] != 1:
            raise UserError("allocator.survivors has to be as long as allocator.stages and to end with 1.")
        falling = sorted(self.survivors, reverse=True) == list(self.survivors)
        if sorted(self.stages) != list(self.stages) or self.stages[0] < 1 or not falling:
            raise UserError("allocator.stages (windows) have to rise from at least 1, allocator.survivors to fall.")
        if self.offspring < self.survivors[0] or self.generations < 0 or self.switches < 1:
            raise UserError(
                "allocator.offspring has to be at least the first of allocator.survivors, allocator.generations at "
                "least 0 and allocator.switches at least 1."
            )
        super().__post_init__()

    @property
    def fitness_windows(self) -> int:
        """The windows of the last stage."""
        return self.stages[-1]

    def allocate(self, view: ModelView, budget: Budget) -> Allocation:
        space = self.space(view, budget)
        with self.state(view, space, ("offspring", "survivors", "stages", "switches")) as state:
            while len(state.generations) <= self.generations:
                self._generation(space, state, rng(view.seed, f"evopress/{len(state.generations)}"))
            return self.conclude(view, space, state, self.generations)

    def _generation(self, space: Space, state: SearchState, draw: Random) -> None:
        parent = tuple(state.population[0]) if state.population else space.uniform
        pool = [parent]
        if state.population:
            pool = [
                space.switched(parent, min(draw.randint(1, self.switches), draw.randint(1, self.switches)), draw)
                for _ in range(self.offspring)
            ]
        losses: list[float] = []
        for place, (keep, windows) in enumerate(zip(self.survivors, self.stages, strict=True)):
            if place == len(self.stages) - 1:
                pool.insert(0, parent)  # a child has to be better
            ranked = best_first(pool, state.judge(pool, windows))[:keep]
            pool, losses = [candidate for candidate, _ in ranked], [loss for _, loss in ranked]
        state.end_generation(pool, losses)
