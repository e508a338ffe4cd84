"""Lifting a method for one linear to a whole block."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from harness.core.interfaces import BlockMethod, BlockView, LinearMethod, Pruned, SharingMethod
from harness.core.linalg import not_finite
from harness.core.pattern import Pattern
from harness.core.statistic import Gram, Norms, Seen


@dataclass(frozen=True)
class EachLinear:
    """Prune every linear of a block on its own, all from what they saw before any of them was pruned.

    A GPU is waited for once, at the end: what turns out not to be sound there is done again, step by step.
    """

    method: LinearMethod

    def prune_block(self, block: BlockView, patterns: Mapping[str, Pattern]) -> dict[str, Pruned]:
        seen, weights, method_of = self._seen(block, patterns), block.weights, self.method_for(block)
        waits = any(weight.is_cuda for weight in weights.values())
        if not waits:
            _refuse_overflow(seen)
        pruned: dict[str, Pruned] = {}
        groups = _with_the_same(seen, patterns, method_of)
        for sites in groups:
            if isinstance(method := method_of(sites[0]), SharingMethod):
                method.prepare(seen[sites[0]])
        for sites in groups:
            state, method = seen.get(sites[0]), method_of(sites[0])
            if isinstance(method, SharingMethod):
                asked = [patterns[site] for site in sites]
                results = method.prune_together([weights[site] for site in sites], state, asked)
            else:
                results = [method.prune(weights[site], state, patterns[site]) for site in sites]
            pruned |= zip(sites, results, strict=True)
        if waits:
            _refuse_overflow(seen)
        for site in _unsound(pruned):
            pruned[site] = method_of(site).prune(weights[site], seen[site], patterns[site])
        return {site: pruned[site]._replace(sound=None) for site in patterns}

    def method_for(self, block: BlockView) -> Callable[[str], LinearMethod]:
        """The method of each matrix: the one that is lifted, unless it has another `for_part` of the block."""
        if not hasattr(self.method, "for_part"):
            return lambda site: self.method
        inside, attention, mlp = block.feed_forward.sites, *map(self.method.for_part, ("attention", "mlp"))
        return lambda site: mlp if site in inside else attention

    def _seen(self, block: BlockView, patterns: Mapping[str, Pattern]) -> Mapping[str, Seen]:
        """What every linear's inputs were, or what is known of its weight where blocks keep such things."""
        if self.method.statistic:
            return block.observe(self.method.statistic)
        knows, known = getattr(self.method, "knows", None), getattr(block, "known", None)
        return {site: known(site, knows) for site in patterns} if knows and known else {}


def _refuse_overflow(seen: Mapping[str, Seen]) -> None:
    """Inputs whose squares are not finite choose nothing: every score is infinite or not a number.

    Raises:
        UserError: a site has such inputs.
    """
    squares = {site: one for site, state in seen.items() if (one := _squares(state)) is not None}
    if not squares:
        return
    finite = torch.stack([torch.isfinite(one).all() for one in squares.values()]).tolist()
    for site, fine in zip(squares, finite, strict=True):
        if not fine:
            raise not_finite(f"the calibration inputs of {site}")


def _squares(state: Any) -> torch.Tensor | None:
    """The sums of squares (I,) in what was seen, where it is one of the harness's statistics."""
    if isinstance(state, Norms):
        return state.mean
    return state.sums.diagonal() if isinstance(state, Gram) else None


def _with_the_same(
    seen: Mapping[str, Any], patterns: Mapping[str, Pattern], method_of: Callable[[str], LinearMethod]
) -> list[list[str]]:
    """The sites in groups that share what was seen, and their method; each alone where nothing was seen."""
    groups: dict[Any, list[str]] = {}
    for site in patterns:
        groups.setdefault((id(seen[site]), id(method_of(site))) if site in seen else site, []).append(site)
    return list(groups.values())


def _unsound(pruned: Mapping[str, Pruned]) -> list[str]:
    flags = {site: result.sound for site, result in pruned.items() if result.sound is not None}
    if not flags:
        return []
    sound = torch.stack(list(flags.values())).tolist()
    return [site for site, fine in zip(flags, sound, strict=True) if not fine]


def as_block_method(method: Any) -> BlockMethod:
    """A BlockMethod as it is, a LinearMethod lifted."""
    return method if isinstance(method, BlockMethod) else EachLinear(method)
