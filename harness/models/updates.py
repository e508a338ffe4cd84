"""Low-rank maps in the residual stream, in place of blocks and sub-layers that are gone: h + B A h.

Of attention it is a child of what stands in for it; of a feed-forward part, and of whole blocks, a child of the block
behind which they were, whose class then applies it to what the block gives. Shapes: D hidden size, r rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.structure import Part
from harness.models.decoder import Decoder
from harness.models.shifts import place_of
from harness.models.skipped import UPDATE, LowRank, Skipped
from harness.runtime.errors import Refusal


def add_updates(decoder: Decoder, rank: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Put a map in every place where something is gone: of `rank` for every unit, random A, B of zeros.

    A is uniform within ±1/√D, as in low-rank adaptation.

    Returns:
        The tensors A and B by their full names.

    Raises:
        Refusal: nothing is gone, or no block is left in front of what is.
    """
    ranks: dict[tuple[int, Part], int] = {}
    for unit in sorted(decoder.cut.units):
        if unit.part in ("block", "attention", "mlp"):
            place = place_of(decoder, unit)
            ranks[place] = ranks.get(place, 0) + rank
    if not ranks:
        raise Refusal("no block and no sub-layer is gone in whose place a map could stand; take a planner of depth.")
    for (index, sublayer), total in ranks.items():
        block = decoder.block(index)
        owner = block.get_submodule(decoder.anatomy.parts[0]) if sublayer == "attention" else block
        update = put(owner, total, decoder.config.hidden_size)
        bound = update.A.shape[1] ** -0.5
        drawn = torch.empty(update.A.shape).uniform_(-bound, bound, generator=generator)
        update.A.data.copy_(drawn)
    return {
        f"{decoder.site(index, name)}.{part}": getattr(update, part)
        for index in decoder.indices
        for name, update in low_rank(decoder.block(index))
        for part in ("A", "B")
    }


def put(owner: nn.Module, rank: int, width: int) -> LowRank:
    """Give a block, or what stands in for attention, a map."""
    like = next((one for one in owner.parameters()), torch.empty(0))
    update = LowRank(rank, width, like)
    if not isinstance(owner, Skipped):
        kind: Any = type(owner)
        owner.__class__ = _updating(kind)
    owner.add_module(UPDATE, update)
    return update


def ranks_of(model: nn.Module) -> dict[str, int]:
    """The ranks of a model's maps, by the full names of the modules that have them."""
    return {name.removesuffix(f".{UPDATE}"): len(update.A) for name, update in low_rank(model)}


def put_again(decoder: Decoder, ranks: Mapping[str, int]) -> None:
    """Make the maps that `ranks_of` counted, without their numbers."""
    for name, rank in ranks.items():
        put(decoder.model.get_submodule(name), int(rank), decoder.config.hidden_size)


def low_rank(module: nn.Module) -> Iterator[tuple[str, LowRank]]:
    """The maps inside a module, by their names there."""
    return ((name, one) for name, one in module.named_modules() if isinstance(one, LowRank))


@lru_cache
def _updating(kind: Any) -> type:
    """The class of a block that applies a map to the hidden states that it gives."""

    def forward(self: Any, *positional: Any, **named: Any) -> Any:
        output = kind.forward(self, *positional, **named)
        hidden = output[0] if isinstance(output, tuple) else output
        behind = hidden + self.update(hidden)
        return (behind, *output[1:]) if isinstance(output, tuple) else behind

    made = {"forward": forward, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (kind,), made)
