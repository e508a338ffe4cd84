"""The gradients that a recovery may choose its trained weights by, before training.

Shapes: O outputs, I inputs of a matrix; N windows, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.core.recoveries import Adapter
from harness.core.rng import rng
from harness.models.decoder import Decoder
from harness.training.adapted import Adapted, start
from harness.training.loop import TOKENS_AT_ONCE, nll


@dataclass(frozen=True)
class Scores:
    """View for a recovery that chooses which weights train, see `ScoreView`."""

    decoder: Decoder
    weights: Mapping[str, Tensor]
    kept: Mapping[str, Tensor]
    text: Tensor
    seed: int
    checkpointing: bool

    @property
    def generator(self) -> torch.Generator:
        """Random numbers, from their beginning each time that it is asked for."""
        return torch.Generator().manual_seed(rng(self.seed, "scores of a recovery").randrange(2**63))

    def gradients(self, windows: int) -> dict[str, Tensor]:
        """Site → gradient (O, I) of the mean loss of some training windows, in float32; zeros have theirs too."""
        chosen = rng(self.seed, "windows of scores").sample(range(len(self.text)), min(windows, len(self.text)))
        rows = self.text[chosen]
        adapters = {
            site: Adapter({"all": torch.zeros(weight.shape)}, lambda _, parts: parts["all"])
            for site, weight in self.weights.items()
        }
        device = next(iter(self.weights.values())).device
        parts = {name: part.to(device).requires_grad_(True) for name, part in start(adapters).items()}
        adapted = Adapted(self.decoder, adapters, parts, self.checkpointing)
        at_once = max(1, TOKENS_AT_ONCE[device.type] // rows.shape[1])
        with adapted.in_place():
            for some in rows.split(at_once):
                loss = nll(self.decoder.model, some.to(device)) * (len(some) / len(rows))
                loss.backward(inputs=list(parts.values()))
        return {site: _of(parts[f"{site}/all"]) for site in self.weights}


def _of(part: Tensor) -> Tensor:
    assert part.grad is not None
    return part.grad
