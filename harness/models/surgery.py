"""Applying structural edits to a model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness.core.edit import Edit
from harness.core.errors import Refusal
from harness.core.structure import Cut
from harness.models.decoder import Decoder


def operate(decoder: Decoder, edit: Edit) -> Decoder:
    """The decoder without the blocks that the edit drops, in place; the rest keeps its order and its numbers.

    Raises:
        Refusal: the model has no such block, or none would be left.
    """
    blocks = decoder.modules
    dropped = set(edit.dropped_blocks)
    if not dropped < set(range(len(blocks))):
        raise Refusal(f"the blocks {sorted(dropped)} cannot all be dropped: the model has 0-{len(blocks) - 1}.")
    config: Any = decoder.config
    kinds = getattr(config, "layer_types", None)  # some families give each block its own mask, by position
    for index in sorted(dropped, reverse=True):
        del blocks[index]
        if kinds:
            del kinds[index]
    config.num_hidden_layers = len(blocks)
    return replace(decoder, cut=decoder.cut | Cut.of_blocks(edit.dropped_blocks))
