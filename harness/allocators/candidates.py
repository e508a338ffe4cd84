"""Shared parts of the searching allocators: the space and the database of their candidates, and what is told."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from itertools import takewhile
from statistics import correlation, mean
from typing import Any, Literal

from harness import catalogue
from harness.core.allocation import Allocation, Budget
from harness.core.costs import Cost, Work, block_bytes
from harness.core.geometry import Geometry
from harness.core.interfaces import Assembler, Database, ModelView, Objective, Trace
from harness.core.pattern import NofM, Pattern, Unstructured
from harness.core.proposals import Granularity, sizes
from harness.core.search import CANDIDATE_LOGIT_BYTES, LevelGrid, SearchState, Space, stopped
from harness.runtime.errors import Refusal, UserError

Sensitivity = Literal["fisher", "hessian"]


LEVELS = 5
"""Times that a search prunes every matrix, about."""
LOGIT_PIECES = 5
"""Tensors as large as a piece of logits while a candidate is judged: in 16 and 32 bits, logarithms, products."""


def sparsegpt() -> Any:
    """The method by which levels are made unless one is named; allocators know methods by name only."""
    return catalogue.build("method", {"name": "sparsegpt"})


def sensitivity_of(view: ModelView, kind: Sensitivity, windows: int, probes: int) -> dict[str, Trace]:
    """The traces of the matrices in scope; they go into the record."""
    fisher = kind == "fisher"
    traces = view.fisher_trace(windows) if fisher else view.hessian_trace(windows, probes, "gaussian")
    found = {site: traces[site] for site in view.shapes}
    for site, trace in found.items():
        if not math.isfinite(trace.value):
            raise Refusal(f"the {kind} trace of {site} is not finite; try dtype=float32.")
    stderr = {site: None if math.isnan(trace.stderr) else trace.stderr for site, trace in found.items()}
    value = {site: trace.value for site, trace in found.items()}
    view.log(sensitivity={"kind": kind, "windows": windows, "value": value, "stderr": stderr})
    return found


@dataclass(frozen=True)
class Search:
    """Settings that all searching allocators share: how candidates are made and judged."""

    granularity: Granularity = "matrix"
    """The units that have a sparsity of their own."""
    pruner: Any = field(default_factory=sparsegpt, metadata={"component": "method"})
    """The method that prunes every matrix once per level; null: the run's own."""
    inputs: Literal["dense", "pruned"] = "dense"
    """The inputs on which levels are pruned: the dense model's, or those in the model pruned uniformly."""
    objective: Objective = "kl"
    """The measure of a candidate: divergence from the dense model (`kl`) or loss (`nll`)."""
    held_out: int = 8
    """Windows behind those, by which the best and the uniform candidate are judged once more in the end."""
    step: float = 0.05
    """The distance of two levels."""
    reach: float = 0.2
    """The furthest that a level is away from the budget."""
    minimum: float = 0.0
    """The sparsity of a level at least."""
    maximum: float = 1.0
    """The sparsity of a level at most."""
    levels: tuple[int, ...] = ()
    """The n of mixed n:M that a matrix may have; empty for all of 0…M."""
    database: Literal["memory", "disk"] = field(default="memory", metadata={"identity": False})
    """Where pruned matrices are kept."""
    database_gib: float | None = field(default=None, metadata={"identity": False})
    """GiB that they may take; null: no limit."""

    uses_cache = True

    def __post_init__(self) -> None:
        if self.fitness_windows < 1 or self.held_out < 0:
            raise UserError("allocator.windows has to be at least 1 and allocator.held_out at least 0.")
        if self.database_gib is not None and self.database_gib <= 0:
            raise UserError("allocator.database_gib has to be above 0.")
        self._grid  # noqa: B018 (its own checks)

    @property
    def fitness_windows(self) -> int:
        """The windows by which candidates are judged; `held_out` further ones follow them."""
        raise NotImplementedError

    @property
    def _grid(self) -> LevelGrid:
        return LevelGrid(self.step, self.reach, self.minimum, self.maximum, self.levels)

    def judging(self, judged: float, geometry: Geometry, work: Work) -> Cost:
        """The cost of a search that judges candidates on so many windows: its database of levels, and their losses.

        Beside the database are the dense matrices, where a walk over pruned blocks puts them back; while candidates are
        judged, the dense model's probabilities for all windows and what is made of a piece of logits.
        """
        blocks, windows = block_bytes(geometry, work), self.fitness_windows + self.held_out
        levels = sum(pattern.sparsity > 0 for pattern in self._grid.pattern_of(work.budget).values()) * blocks
        logits = 4 * windows * work.length * geometry.vocabulary
        return Cost(
            forwards=judged * work.length,
            column_walks=LEVELS,
            kept_bytes=(blocks if self.inputs == "pruned" else 0) + (levels if self.database == "memory" else 0),
            stored_bytes=levels if self.database == "disk" else 0,
            working_bytes=logits + LOGIT_PIECES * min(CANDIDATE_LOGIT_BYTES[work.device], logits),
        )

    def space(self, view: ModelView, budget: Budget) -> Space:
        """All candidates of the model."""
        return Space(view.blocks, sizes(view), budget, self._grid, self.granularity)

    @contextmanager
    def state(self, view: ModelView, space: Space, settings: Sequence[str]) -> Iterator[SearchState]:
        """The state of a search with these and the common settings; no other process works on it meanwhile.

        The database is made when a candidate has to be evaluated.
        """
        common = [one.name for one in fields(Search) if one.metadata.get("identity", True) and one.name != "pruner"]
        named = {key: getattr(self, key) for key in (*settings, *common)} | {"windows": self.fitness_windows}
        named |= {"revision": catalogue.revision(self), "pruner": catalogue.describe(self._method(view))}
        named |= {"seed": view.seed, "budget": asdict(space.budget)}
        entry = view.cached(catalogue.name_of(self), named)
        with entry.held():
            yield SearchState(entry, space, lambda: self.assembler(view, space), self.fitness_windows, view.window)

    def assembler(self, view: ModelView, space: Space) -> Assembler:
        """The database of every level, and of the dense matrices, with the windows to judge by."""
        patterns = list(space.pattern_of.values())
        levels = (
            patterns if any(pattern.sparsity == 0 for pattern in patterns) else [*patterns, dense_level(space.budget)]
        )
        return view.assembler(
            self._method(view),
            dict.fromkeys(space.sizes, levels),
            inputs=None if self.inputs == "dense" else space.patterns(space.uniform),
            windows=self.fitness_windows + self.held_out,
            objective=self.objective,
            database=Database(self.database, self.database_gib),
        )

    def _method(self, view: ModelView) -> Any:
        return self.pruner if self.pruner is not None else view.method

    def conclude(
        self, view: ModelView, space: Space, state: SearchState, generations: int, patience: int | None = None
    ) -> Allocation:
        """The best candidate of the generation at which this search ends, and its trajectory for the record."""
        last = generations
        if patience is not None:
            ends = (end for end in range(generations) if stopped(state.generations[: end + 1], patience))
            last = next(ends, generations)
        done = state.generations[: last + 1]
        candidate = tuple(done[-1]["genome"])
        held_out = {
            name: state.held_out(one, self.held_out) for name, one in (("best", candidate), ("uniform", space.uniform))
        }
        view.log(
            search={
                "objective": self.objective,
                "generations": [{key: value for key, value in one.items() if key != "genome"} for one in done],
                "evaluations": done[-1]["evaluations"],
                "tokens": done[-1]["tokens"],
                "seconds": done[-1]["seconds"],
                "database": state.database,
                "held_out": held_out if self.held_out else {},
            }
        )
        return space.allocation(candidate)


def dense_level(budget: Budget) -> Pattern:
    """The level of this kind of budget that removes nothing."""
    return Unstructured(0.0) if budget.of is None else NofM(budget.of, budget.of)


def verification(space: Space, assembler: Assembler, sensitivity: Mapping[str, float]) -> dict[str, Any]:
    """One unit at a time at the level of the even allocation, all others dense: its loss beside its sensitivity.

    Args:
        sensitivity: one value per unit, named as in `unit_names`.

    Returns:
        Every unit's values, the loss of the dense model, and Spearman's rank correlation.
    """
    dense = dict.fromkeys(space.sizes, dense_level(space.budget))
    even = space.patterns(space.uniform)
    candidates = [dense, *({**dense, **{site: even[site] for site in unit}} for unit in space.units)]
    before, *losses = assembler.losses(candidates)
    names = unit_names(space)
    kind = "matrix" if all(len(unit) == 1 for unit in space.units) else "block"
    units = [
        {"unit": name, "kind": kind, "sensitivity": sensitivity[name], "loss": loss}
        for name, loss in zip(names, losses, strict=True)
    ]
    return {"units": units, "dense": before, "spearman": spearman([sensitivity[name] for name in names], losses)}


def unit_names(space: Space) -> list[str]:
    """The site of a matrix that is a unit of its own, or the index of a block."""
    return [unit[0] if len(unit) == 1 else block_prefix(unit).rstrip(".").rpartition(".")[2] for unit in space.units]


def block_prefix(sites: Sequence[str]) -> str:
    """Common prefix of the names of all sites of a block, up to a point."""
    parts = [site.split(".") for site in sites]
    common = takewhile(lambda names: len(set(names)) == 1, zip(*parts, strict=False))
    return "".join(f"{names[0]}." for names in common)


def unit_values(
    units: Sequence[Sequence[str]],
    weights: Mapping[str, int],
    traces: Mapping[str, Trace],
    per: Literal["matrix", "parameter"],
) -> list[float]:
    """The sensitivity of every unit: the sum of its traces, divided by its parameters if `per` says so."""
    sums = [sum(traces[site].value for site in unit) for unit in units]
    if per == "matrix":
        return sums
    return [total / sum(weights[site] for site in unit) for total, unit in zip(sums, units, strict=True)]


def ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 0, equal values sharing the mean of theirs."""
    order = sorted(values)
    return [mean((order.index(value), len(order) - 1 - order[::-1].index(value))) for value in values]


def spearman(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Spearman's rank correlation; None where one side is constant."""
    if len(set(one)) < 2 or len(set(other)) < 2:
        return None
    return correlation(ranks(one), ranks(other))
