"""Low-rank adapters, merged into the weights: zeros do not stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.catalogue import component
from harness.core.recoveries import Adapter
from harness.core.training import Training
from harness.runtime.errors import UserError


@component("recovery", "lora")
@dataclass(frozen=True)
class Lora(Training):
    """Hu et al. 2022 (arXiv 2106.09685), eq. 3: W + (α / r) B A, with B (O, r) zero and A (r, I) random at the start.

    A is uniform within ±1/√I, as in the authors' `loralib` and in peft. There is no dropout. Merging fills the zeros of
    W; the record says how many (`filled`).
    """

    rank: int = 8
    """The rank r of what is added to a matrix."""
    alpha: float = 16.0
    """The factor α of what is added, over the rank."""
    lr: float | tuple[float, ...] = 5e-4

    keeps_zeros = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1:
            raise UserError(f"recovery.rank={self.rank} has to be at least 1.")

    def adapter(self, weight: Tensor, kept: Tensor, generator: torch.Generator) -> Adapter:
        outputs, inputs = weight.shape
        bound = inputs**-0.5

        def delta(weight: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
            return self.alpha / self.rank * (parts["B"] @ parts["A"])

        a = torch.empty(self.rank, inputs).uniform_(-bound, bound, generator=generator)
        return Adapter({"A": a, "B": torch.zeros(outputs, self.rank)}, delta)

    def trained(self, outputs: int, inputs: int, kept: float) -> float:
        return self.rank * (outputs + inputs)
