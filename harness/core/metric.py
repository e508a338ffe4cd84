"""Wanda's metric of a whole block, which several allocators judge blocks by."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.core.interfaces import BlockView, Site
from harness.core.statistic import squared_norms


def wanda_scores(block: BlockView) -> dict[Site, Tensor]:
    """|W| times the norm of its input, for every matrix (O, I) of a block."""
    stats = block.observe(squared_norms)
    return {site: weight.abs() * stats[site].mean_sq.sqrt() for site, weight in block.weights.items()}


def wanda_metric(block: BlockView) -> Tensor:
    """The scores of a block, its matrices one after the other, flat."""
    return torch.cat([score.flatten() for score in wanda_scores(block).values()])
