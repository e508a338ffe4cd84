"""Lifting a method for one linear to a whole block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.core.interfaces import BlockMethod, BlockView, LinearMethod, Pruned
from harness.core.pattern import Pattern
from harness.core.statistic import Seen


@dataclass(frozen=True)
class EachLinear:
    """Prune every linear of a block on its own, all from what they saw before any of them was pruned."""

    method: LinearMethod

    def prune_block(self, block: BlockView, patterns: Mapping[str, Pattern]) -> dict[str, Pruned]:
        seen = self._seen(block, patterns)
        return {
            site: self.method.prune(block.weights[site], seen.get(site), pattern) for site, pattern in patterns.items()
        }

    def _seen(self, block: BlockView, patterns: Mapping[str, Pattern]) -> Mapping[str, Seen]:
        """What every linear's inputs were, or what is known of its weight where blocks keep such things."""
        if self.method.statistic:
            return block.observe(self.method.statistic)
        knows, known = getattr(self.method, "knows", None), getattr(block, "known", None)
        return {site: known(site, knows) for site in patterns} if knows and known else {}


def as_block_method(method: Any) -> BlockMethod:
    """A BlockMethod as it is, a LinearMethod lifted."""
    return method if isinstance(method, BlockMethod) else EachLinear(method)
