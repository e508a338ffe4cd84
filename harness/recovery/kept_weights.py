"""Training of all weights that pruning kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.catalogue import component
from harness.core.recoveries import Adapter
from harness.core.training import Training


@component("recovery", "kept_weights")
@dataclass(frozen=True)
class KeptWeights(Training):
    """Retraining of the weights that survived (Han et al. 2015, arXiv 1506.02626, section 3): W + D, D zero where W is.

    Only the differences of the kept weights exist, as one vector of each matrix.
    """

    lr: float | tuple[float, ...] = 2e-4

    keeps_zeros = True

    def adapter(self, weight: Tensor, kept: Tensor, generator: torch.Generator) -> Adapter:
        def delta(weight: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
            nothing = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
            return nothing.masked_scatter(kept, parts["difference"])

        return Adapter({"difference": torch.zeros(int(kept.sum()))}, delta)

    def trained(self, outputs: int, inputs: int, kept: float) -> float:
        return kept * outputs * inputs
