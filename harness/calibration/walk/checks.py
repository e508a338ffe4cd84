"""Self-checks before anything is pruned: the replay of the blocks is the model, and the model is causal."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.calibration.walk.stream import Stream
from harness.models.decoder import Decoder
from harness.models.pieces import FOLLOW_TOKENS, same_arguments
from harness.runtime.errors import UserError

LENGTH = 16
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 2e-1, torch.float16: 5e-2}
"""Largest difference of logits, relative to their largest magnitude (at least 1), that rounding explains."""


@torch.no_grad()
def self_check(decoder: Decoder) -> None:
    """Check the replay on two short windows of token ids (1, L), causality on the first.

    What blocks are called with is compared between them: where it follows from the tokens, the blocks are marked, and a
    stream asks the model for every batch.

    Raises:
        UserError: the logits are not finite, replaying the blocks does not give them, or a later token moves earlier
            ones.
    """
    model = decoder.model
    vocabulary = model.config.get_text_config().vocab_size
    places = torch.arange(LENGTH, device=model.device)[None]
    tokens, others = places * 7 % vocabulary, (places * 5 + 3) % vocabulary
    dense = model(tokens, use_cache=False).logits
    if not bool(torch.isfinite(dense).all()):
        raise UserError(
            f"the logits of this model are not finite in {str(dense.dtype).removeprefix('torch.')}: "
            f"{'take dtype=bfloat16 or dtype=float32, or ' if dense.dtype == torch.float16 else ''}"
            "look at its weights and at the settings of its norms in config.json."
        )
    limit = TOLERANCE[next(model.parameters()).dtype] * max(1.0, float(dense.abs().max()))
    replayed = _replayed_logits(decoder, [tokens, others])
    there = (dense, model(others, use_cache=False).logits)
    moved = max(float((one - whole).abs().max()) for one, whole in zip(replayed, there, strict=True))
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


def _replayed_logits(decoder: Decoder, windows: list[Tensor]) -> list[Tensor]:
    """The model's own head on the replayed blocks, for each of several windows (1, L)."""
    state = Stream(decoder, windows)
    if not same_arguments(*map(state.arguments, windows)):
        state.follows_tokens = True
        setattr(state.blocks, FOLLOW_TOKENS, True)
    logits = []
    for hidden, tokens in zip(state.hidden, windows, strict=True):
        for index in decoder.indices:
            hidden = state.run_block(index, hidden, tokens)
        logits.append(state.logits(hidden))
    return logits
