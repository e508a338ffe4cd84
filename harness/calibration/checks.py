"""Two self-checks before anything is pruned: the replay of the blocks is the model, and the model is causal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.calibration.stream import Stream
from harness.core.errors import UserError
from harness.models.anatomy import Anatomy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LENGTH = 16
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 2e-1, torch.float16: 5e-2}
"""Largest difference of logits, relative to their largest magnitude (at least 1), that rounding explains."""


@torch.no_grad()
def self_check(model: PreTrainedModel, anatomy: Anatomy) -> None:
    """Check both on one short window of token ids (1, L).

    Raises:
        UserError: replaying the blocks does not give the model's logits, or a later token moves earlier logits.
    """
    vocabulary = model.config.get_text_config().vocab_size
    tokens = torch.arange(LENGTH, device=model.device)[None] * 7 % vocabulary
    dense = model(tokens, use_cache=False).logits
    limit = TOLERANCE[next(model.parameters()).dtype] * max(1.0, float(dense.abs().max()))
    moved = float((_replayed_logits(model, anatomy, tokens) - dense).abs().max())
    if not moved <= limit:
        raise UserError(
            f"replaying the blocks of this model moves its logits by {moved:.3g} (limit {limit:.3g}); "
            "its family or this version of transformers is not supported."
        )
    changed = tokens.clone()
    changed[0, -1] = (changed[0, -1] + 1) % vocabulary
    moved = float((model(changed, use_cache=False).logits - dense)[:, :-1].abs().max())
    if not moved <= limit:
        raise UserError(f"changing the last token moves earlier logits by {moved:.3g}: this model is not causal here.")


def _replayed_logits(model: PreTrainedModel, anatomy: Anatomy, tokens: Tensor) -> Tensor:
    """The model's own head on the replayed blocks."""
    state = Stream(model, anatomy, [tokens])
    hidden = state.hidden[0]
    for index in range(len(state.blocks)):
        hidden = state.run_block(index, hidden)
    return state.logits(hidden)
