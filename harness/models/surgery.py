"""Applying structural edits to a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.core.edit import Edit
from harness.models.anatomy import Anatomy

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def operate(model: PreTrainedModel, anatomy: Anatomy, edit: Edit) -> None:
    """Leave out the blocks that the edit drops; the rest keeps its order."""
    blocks = anatomy.block_list(model)
    kinds = getattr(model.config, "layer_types", None)  # some families give each block its own mask, by position
    for index in sorted(edit.dropped_blocks, reverse=True):
        del blocks[index]
        if kinds:
            del kinds[index]
    model.config.num_hidden_layers = len(blocks)
