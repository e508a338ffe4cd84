"""Lifting a method for one linear to a whole block."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from harness.catalogue import name_of
from harness.core import checked
from harness.core.interfaces import (
    BlockMethod,
    BlockView,
    FeedForward,
    GroupedMethod,
    KnowingView,
    LinearMethod,
    Pruned,
    Site,
)
from harness.core.linalg import not_finite
from harness.core.pattern import Pattern
from harness.core.statistic import ActivationStats, Gram, SquaredNorms, Statistic, never_seen
from harness.runtime.errors import Failure

PARTS: tuple[Literal["attention", "mlp"], ...] = ("attention", "mlp")


@dataclass(frozen=True)
class EachLinear:
    """Prune every linear of a block on its own, all from what they saw before any of them was pruned.

    A GPU is waited for once, at the end: what turns out not to be sound there is done again, step by step.

    Args:
        method: a `LinearMethod` with its hooks (`core/component.py`).
    """

    method: Any

    @property
    def behind(self) -> LinearMethod:
        """The method that is lifted."""
        return self.method

    def prune_block(
        self,
        block: BlockView,
        patterns: Mapping[str, Pattern],
        seen: Mapping[str, ActivationStats] | None = None,
    ) -> dict[str, Pruned]:
        """Pruned matrices, those with the same inputs in one go where the method can.

        Args:
            seen: statistics of the inputs, where they are known already.

        Raises:
            UserError: inputs are not finite.
        """
        stats = self._stats(block, patterns) if seen is None else seen
        weights, method_of = block.weights, self.method_for(block)
        waits = any(weight.is_cuda for weight in weights.values())
        if not waits:
            _refuse_overflow(stats)
        pruned: dict[str, Pruned] = {}
        groups = _with_the_same(stats, patterns, method_of)
        for sites in groups:
            if isinstance(method := method_of(sites[0]), GroupedMethod):
                method.prepare(stats[sites[0]])
        for sites in groups:
            state, method = stats.get(sites[0]), method_of(sites[0])
            if isinstance(method, GroupedMethod):
                pruned |= prune_group(method, sites, weights, state, patterns)
            else:
                for site in sites:
                    made = method.prune(weights[site], state, patterns[site])
                    pruned[site] = checked.pruned(name_of(method), site, made, weights[site])
        if waits:
            _refuse_overflow(stats)
        for site in _not_ok(pruned):
            pruned[site] = prune_one(method_of(site), site, weights[site], stats.get(site), patterns[site])
        unseen = {site: never_seen(stats.get(site)) for site in patterns}
        return {site: pruned[site]._replace(ok=None, unseen=unseen[site]) for site in patterns}

    def method_for(self, block: BlockView) -> Callable[[str], LinearMethod]:
        """The method of each matrix: the one that is lifted, unless it has another `for_part` of the block."""
        attention, mlp = (self.method.for_part(part) for part in PARTS)
        if attention is mlp:
            return lambda site: attention
        inside = block.feed_forward.sites
        return lambda site: mlp if site in inside else attention

    def _stats(self, block: BlockView, patterns: Mapping[str, Pattern]) -> Mapping[str, ActivationStats]:
        """Statistics of every linear's inputs, or of its weight where blocks keep such things."""
        if self.method.statistic:
            return block.observe(self.method.statistic)
        if self.method.weight_statistic is None or not isinstance(block, KnowingView):
            return {}
        return {site: block.weight_statistic(site, self.method.weight_statistic) for site in patterns}


def prune_group(
    method: LinearMethod,
    sites: Sequence[Site],
    weights: Mapping[Site, Tensor],
    state: ActivationStats,
    patterns: Mapping[Site, Pattern],
) -> dict[Site, Pruned]:
    """Results of a method for weights (O, I) that read the same inputs, left open if they are sound where it says so.

    Raises:
        Failure: one is not of the right form.
    """
    if isinstance(method, GroupedMethod):
        return _together(method, sites, weights, state, [patterns[site] for site in sites])
    return {site: prune_one(method, site, weights[site], state, patterns[site]) for site in sites}


def _refuse_overflow(stats: Mapping[str, ActivationStats]) -> None:
    """Inputs whose squares are not finite choose nothing: every score is infinite or not a number.

    Raises:
        UserError: a site has such inputs.
    """
    squares = {site: one for site, state in stats.items() if (one := _squares(state)) is not None}
    if not squares:
        return
    finite = torch.stack([torch.isfinite(one).all() for one in squares.values()]).tolist()
    for site, fine in zip(squares, finite, strict=True):
        if not fine:
            raise not_finite(f"the calibration inputs of {site}")


def _squares(state: Any) -> torch.Tensor | None:
    """The sums of squares (I,) in what was seen, where it is one of the harness's statistics."""
    if isinstance(state, SquaredNorms):
        return state.mean_sq
    return state.sums.diagonal() if isinstance(state, Gram) else None


def _together(
    method: GroupedMethod,
    sites: Sequence[str],
    weights: Mapping[str, Tensor],
    state: ActivationStats,
    patterns: Sequence[Pattern],
) -> dict[str, Pruned]:
    """Results of a method for matrices (O, I) that read the same inputs.

    Raises:
        Failure: it is not of the right form.
    """
    results, name = list(method.prune_together([weights[site] for site in sites], state, patterns)), name_of(method)
    if len(results) != len(sites):
        raise Failure(f"the method '{name}' pruned {len(sites)} matrices together and returned {len(results)}.")
    return {site: checked.pruned(name, site, one, weights[site]) for site, one in zip(sites, results, strict=True)}


def prune_one(method: LinearMethod, site: Site, weight: Tensor, stats: ActivationStats, pattern: Pattern) -> Pruned:
    """Result of a method for one weight (O, I).

    Raises:
        Failure: it is not of the right form.
    """
    return checked.pruned(name_of(method), site, method.prune(weight, stats, pattern), weight)


@dataclass(frozen=True)
class WholeBlock:
    """A method for whole blocks, whose answers are looked at."""

    method: BlockMethod

    @property
    def behind(self) -> BlockMethod:
        """The method that is looked at."""
        return self.method

    def prune_block(self, block: BlockView, patterns: Mapping[str, Pattern]) -> dict[str, Pruned]:
        watched = _Watched(block)
        results = self.method.prune_block(watched, patterns)
        weights = {site: block.weights[site] for site in patterns}
        pruned = checked.block(name_of(self.method), results, weights)
        return {
            site: one if one.unseen is not None else one._replace(unseen=watched.unseen.get(site))
            for site, one in pruned.items()
        }


class _Watched:
    """A block that remembers which inputs were never seen, whoever observes them: a `BlockView`."""

    def __init__(self, block: BlockView) -> None:
        self._block = block
        self.index = block.index
        self.unseen: dict[Site, Tensor | None] = {}
        if isinstance(block, KnowingView):
            self.weight_statistic = block.weight_statistic

    @property
    def weights(self) -> Mapping[Site, Tensor]:
        return self._block.weights

    @property
    def feed_forward(self) -> FeedForward:
        return self._block.feed_forward

    def observe(self, statistic: Statistic | Mapping[Site, Statistic]) -> Mapping[Site, ActivationStats]:
        """The block's statistics."""
        stats = self._block.observe(statistic)
        self.unseen |= {site: never_seen(state) for site, state in stats.items()}
        return stats

    def log(self, **facts: Any) -> None:
        """Tell it of the block."""
        self._block.log(**facts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._block, name)


def _with_the_same(
    stats: Mapping[str, Any], patterns: Mapping[str, Pattern], method_of: Callable[[str], LinearMethod]
) -> list[list[str]]:
    """The sites in groups that share what was seen, and their method; each alone where nothing was seen."""
    groups: dict[Any, list[str]] = {}
    for site in patterns:
        groups.setdefault((id(stats[site]), id(method_of(site))) if site in stats else site, []).append(site)
    return list(groups.values())


def _not_ok(pruned: Mapping[str, Pruned]) -> list[str]:
    flags = {site: result.ok for site, result in pruned.items() if result.ok is not None}
    if not flags:
        return []
    ok = torch.stack(list(flags.values())).tolist()
    return [site for site, fine in zip(flags, ok, strict=True) if not fine]


def as_block_method(method: Any) -> BlockMethod:
    """A method for whole blocks, or one for a linear lifted to one, whose answers have the right form."""
    return WholeBlock(method) if isinstance(method, BlockMethod) else EachLinear(method)
