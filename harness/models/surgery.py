"""Applying structural plans to a model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness.core.errors import Refusal
from harness.core.structure import Cut, Plan
from harness.models.decoder import Decoder


def operate(decoder: Decoder, plan: Plan) -> Decoder:
    """The decoder without the blocks that the plan cuts, in place; the rest keeps its order and its numbers.

    Raises:
        Refusal: the model has no such block, none would be left, or something else is to go.
    """
    blocks, dropped = decoder.modules, set(plan.edit.blocks)
    if plan.edit != Cut.of_blocks(dropped) or plan.tensors:
        raise Refusal("nothing but whole blocks can be cut.")
    if not dropped < set(range(len(blocks))):
        raise Refusal(f"the blocks {sorted(dropped)} cannot all be dropped: the model has 0-{len(blocks) - 1}.")
    config: Any = decoder.config
    kinds = getattr(config, "layer_types", None)  # some families give each block its own mask, by position
    for index in sorted(dropped, reverse=True):
        del blocks[index]
        if kinds:
            del kinds[index]
    config.num_hidden_layers = len(blocks)
    return replace(decoder, cut=decoder.cut | plan.edit)
