"""Greedy search over whole blocks."""

from __future__ import annotations

from dataclasses import dataclass

from harness.catalogue import component
from harness.planners.greedy import Greedy


@component("planner", "sleb")
@dataclass(frozen=True)
class Sleb(Greedy):
    """Song et al. 2024, SLEB (arXiv 2402.09025), as released: block after block, the one goes without which the mean
    loss of what is left is lowest; the first block and the last one stay.

    The authors take a handful of windows: 128 rows of WikiText-2's training text, joined and cut. With
    `planner.part=sublayer` it is BlockPruner's search between kept ends.
    """

    keep_first: int = 1
    keep_last: int = 1
