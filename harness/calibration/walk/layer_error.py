"""The relative error of every pruned matrix's outputs, measured beside a method and kept out of its seconds.

Shapes: O outputs, I inputs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from harness.core.interfaces import BlockMethod, BlockView, Pruned, Site, behind
from harness.core.pattern import Pattern
from harness.core.statistic import Gram, gram


class WithLayerErrors:
    """A `BlockMethod` that tells, for every matrix of a block, tr((W − Ŵ) G (W − Ŵ)ᵀ) / tr(W G Wᵀ) as `layer_error`.

    G is that of the inputs that the block has before anything in it is pruned, for every method alike. `seconds` is
    what the measuring took.
    """

    def __init__(self, method: BlockMethod) -> None:
        self.behind = behind(method)
        self._method = method
        self.seconds = 0.0

    def prune_block(self, block: BlockView, patterns: Mapping[Site, Pattern]) -> Mapping[Site, Pruned]:
        start = _now(block)
        stats = block.observe(gram)
        dense = {site: weight.clone() for site, weight in block.weights.items()}
        begin = _now(block)
        pruned = self._method.prune_block(block, patterns)
        end = _now(block)
        errors = {site: layer_error(dense[site], one.weight, stats[site]) for site, one in pruned.items()}
        block.log(layer_error={site: float(f"{error:.4g}") for site, error in _read(errors).items()})
        self.seconds += begin - start + _now(block) - end
        return pruned

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)


def layer_error(dense: Tensor, pruned: Tensor, stats: Gram) -> Tensor:
    """The squared error () of the outputs of a pruned weight (O, I), as a share of the dense outputs' square."""
    matrix = stats.matrix

    def square(weight: Tensor) -> Tensor:
        return ((weight @ matrix) * weight).sum(dtype=torch.float64)

    return square(dense.float() - pruned.float()) / square(dense.float())


def _read(errors: Mapping[Site, Tensor]) -> dict[Site, float]:
    values = torch.stack(list(errors.values())).tolist() if errors else []
    return dict(zip(errors, values, strict=True))


def _now(block: BlockView) -> float:
    for weight in block.weights.values():
        if weight.is_cuda:
            torch.cuda.synchronize(weight.device)
        break
    return time.perf_counter()
