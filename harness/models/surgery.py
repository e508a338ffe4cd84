"""Applying structural edits to a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.core.errors import Refusal
from harness.core.structure import Cut
from harness.models.anatomy import Anatomy

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def operate(model: PreTrainedModel, anatomy: Anatomy, edit: Cut) -> None:
    """Leave out the blocks that the edit drops; the rest keeps its order.

    Raises:
        Refusal: the model has no such block, or none would be left.
    """
    blocks = anatomy.block_list(model)
    dropped = set(edit.blocks)
    if not dropped < set(range(len(blocks))):
        raise Refusal(f"the blocks {sorted(dropped)} cannot all be dropped: the model has 0-{len(blocks) - 1}.")
    kinds = getattr(model.config, "layer_types", None)  # some families give each block its own mask, by position
    for index in sorted(dropped, reverse=True):
        del blocks[index]
        if kinds:
            del kinds[index]
    model.config.num_hidden_layers = len(blocks)
