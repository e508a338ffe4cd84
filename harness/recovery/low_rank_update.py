"""Low-rank maps in place of the blocks and sub-layers that are gone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.catalogue import component
from harness.core.recoveries import Adapter, RecoveryView
from harness.core.training import Training
from harness.runtime.errors import UserError


@component("recovery", "low_rank_update")
@dataclass(frozen=True)
class LowRankUpdate(Training):
    """Siddiqui et al. 2024 (arXiv 2407.16286), the low-rank linear adapter, from description: h + B A h where a block
    or a sub-layer was, A (r, D) and B (D, r) trained on the next token while all else stays.

    The authors' code has no such adapter, and the loss that they train it with is not known to us. Here B is zero at
    the start and A uniform within ±1/√D; blocks that are gone behind one another share one map, of the sum of their
    ranks. A plan's mean updates stay beside it. A model with such maps is saved with `save_form=sliced`.
    """

    rank: int = 8
    """The rank r for every block or sub-layer that is gone."""
    lr: float | tuple[float, ...] = 1e-3

    keeps_zeros = True
    leaves_plain = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1:
            raise UserError(f"recovery.rank={self.rank} has to be at least 1.")

    def heal(self, view: RecoveryView) -> None:
        """Puts the maps into the model and trains them."""
        view.train({name: _itself(tensor) for name, tensor in view.updates(self.rank).items()})

    def trained(self, outputs: int, inputs: int, kept: float) -> float:
        """Nothing of the matrices that are left."""
        return 0.0


def _itself(tensor: Tensor) -> Adapter:
    """The adapter that trains a whole tensor, as its difference from what it is."""

    def delta(weight: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
        return parts["difference"]

    return Adapter({"difference": torch.zeros(tensor.shape)}, delta)
