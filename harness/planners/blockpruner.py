"""Greedy search over attention and feed-forward parts."""

from __future__ import annotations

from dataclasses import dataclass

from harness.catalogue import component
from harness.core.depth import Depth
from harness.planners.greedy import Greedy


@component("planner", "blockpruner")
@dataclass(frozen=True)
class BlockPruner(Greedy):
    """Zhong et al. 2024, BlockPruner (arXiv 2406.10594), as released: sub-layer after sub-layer, the one goes without
    which the perplexity of what is left is lowest, wherever it is.

    Perplexity is exp of the mean over windows of each window's mean loss, so the order is that of the mean loss. The
    authors take 128 (later 256) answers of Alpaca, joined and cut; `planner.part=attention` or `mlp` is their `mha` or
    `mlp`.
    """

    part: Depth = "sublayer"
