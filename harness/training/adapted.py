"""A decoder that runs with adapters merged into its weights, which themselves stay as they are until `merge`.

Shapes: O outputs, I inputs of a matrix; B windows, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from harness.core.recoveries import Adapter
from harness.models.decoder import Decoder
from harness.models.pieces import patched
from harness.models.updates import low_rank

Parts = dict[str, Tensor]
"""Trained tensors, by `<site>/<name of the part>`."""


def start(adapters: Mapping[str, Adapter]) -> Parts:
    """The parts as adapters begin with them."""
    return {f"{site}/{name}": part.float() for site, one in adapters.items() for name, part in one.parts.items()}


def merged(weight: Tensor, adapter: Adapter, parts: Mapping[str, Tensor], strength: float = 1.0) -> Tensor:
    """The weight (O, I) with what an adapter adds: summed in float32, cast once, in training as in the end."""
    delta = adapter.delta(weight, parts)
    return (weight.float() + (delta if strength == 1.0 else strength * delta)).to(weight.dtype)


def tensors_of(decoder: Decoder, index: int) -> dict[str, Tensor]:
    """Adaptable tensors of a block: matrices (O, I) by site, norms, biases (n,) and low-rank maps by full names."""
    matrices = {site: linear.weight for site, linear in decoder.linears(index).items()}
    others = {name: one for name, one in decoder.block(index).named_parameters() if one.dim() == 1}
    for name, update in low_rank(decoder.block(index)):
        others |= {f"{name}.{part}": one for part, one in update.named_parameters()}
    return matrices | {decoder.site(index, name): one for name, one in others.items()}


@dataclass
class Adapted:
    """A decoder and its adapters: of matrices by site, of other tensors of a block by their full names.

    `strengths` multiplies what the adapters of a block add, by the block's index; 1 where it says nothing.
    """

    decoder: Decoder
    adapters: Mapping[str, Adapter]
    parts: Parts
    checkpointing: bool = False
    strengths: Mapping[int, float] = field(default_factory=dict)

    @property
    def blocks(self) -> tuple[int, ...]:
        """The indices of the blocks that have adapters."""
        return tuple(index for index in self.decoder.indices if self._tensors(index))

    def of_block(self, index: int) -> Parts:
        """The parts of one block."""
        return {f"{site}/{name}": self.parts[f"{site}/{name}"] for site, name in self._names(index)}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While inside, every adapted block runs with merged weights; parameters and modules stay the model's own."""
        blocks = {index: self.decoder.block(index) for index in self.blocks}
        with patched({block: self._forward(index, block) for index, block in blocks.items()}):
            yield

    @torch.no_grad()
    def merge(self) -> tuple[int, int]:
        """Write the merged weights into the model.

        Returns:
            How many weights were adapted, and how many of them are another number than before.
        """
        total = moved = 0
        for index in self.blocks:
            for site, weight in self._tensors(index).items():
                adapter = self.adapters[site]
                final = adapter._replace(delta=adapter.merges or adapter.delta)
                after = merged(weight, final, self._of_site(site), self._strength(index))
                moved += int((after != weight).sum())
                total += after.numel()
                weight.data.copy_(after)
        return total, moved

    def _forward(self, index: int, block: nn.Module) -> Callable[..., Any]:
        """A block's forward; its activations are computed again for gradients if that is wanted.

        With nothing to train in front of it or in it, no gradient is recorded at all.
        """
        own = _Own(block)
        named = {id(tensor): name for name, tensor in block.named_parameters()}
        tensors = {site: (f"block.{named[id(one)]}", one) for site, one in self._tensors(index).items()}

        def run(*positional: Any, **given: Any) -> Any:
            weights = {
                name: merged(tensor, self.adapters[site], self._of_site(site), self._strength(index))
                for site, (name, tensor) in tensors.items()
            }
            return functional_call(own, weights, positional, given)

        def forward(*positional: Any, **given: Any) -> Any:
            if self.checkpointing and torch.is_grad_enabled():
                # nothing is drawn in a block: the model is in evaluation mode, without dropout
                return checkpoint(run, *positional, use_reentrant=False, preserve_rng_state=False, **given)
            return run(*positional, **given)

        return forward

    def _tensors(self, index: int) -> dict[str, Tensor]:
        """The adapted tensors of a block as they are without adapters."""
        return {site: one for site, one in tensors_of(self.decoder, index).items() if site in self.adapters}

    def _names(self, index: int) -> list[tuple[str, str]]:
        return [(site, name) for site in self._tensors(index) for name in self.adapters[site].parts]

    def _of_site(self, site: str) -> dict[str, Tensor]:
        return {name: self.parts[f"{site}/{name}"] for name in self.adapters[site].parts}

    def _strength(self, index: int) -> float:
        return self.strengths.get(index, 1.0)


class _Own(nn.Module):
    """A block by its own forward, whatever stands in for that by then."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self._run = block, block.forward

    def forward(self, *positional: Any, **named: Any) -> Any:
        return self._run(*positional, **named)
