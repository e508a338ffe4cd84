"""Losses of next tokens are torch's own of the whole model's logits, however the head takes its positions."""

from __future__ import annotations

import pytest
import torch
from helpers import tiny, windows
from torch.nn import functional

from harness.models.losses import logits_in_pieces, next_token_loss, next_token_losses, window_losses

MODEL, TOKENS = tiny("llama"), windows(5)
LENGTH = TOKENS.shape[1]
with torch.no_grad():
    LOGITS = MODEL(TOKENS, use_cache=False).logits
    HIDDEN = MODEL.model(TOKENS, use_cache=False).last_hidden_state
EXPECTED = functional.cross_entropy(LOGITS[:, :-1].transpose(1, 2), TOKENS[:, 1:], reduction="none")


@pytest.mark.parametrize("at_once", [0, 1, 7, LENGTH - 1, LENGTH, 2 * LENGTH, 100 * LENGTH])
@torch.no_grad()
def test_every_target_is_judged_once_and_no_more_positions_at_once(at_once: int) -> None:
    seen: list[int] = []

    def head(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(hidden.shape[0] * hidden.shape[1])
        return MODEL.lm_head(hidden)

    found = [(part.start, losses) for part, losses in next_token_losses(head, HIDDEN, TOKENS, at_once)]
    assert max(seen) <= max(1, at_once)
    rows = [torch.cat([losses for start, losses in found if start == first], dim=1) for first, _ in dict(found).items()]
    torch.testing.assert_close(torch.cat(rows), EXPECTED, rtol=1e-6, atol=1e-6)
    means = window_losses(MODEL.lm_head, HIDDEN, TOKENS, at_once)
    assert means.dtype == torch.float64
    torch.testing.assert_close(means, EXPECTED.double().mean(dim=1), rtol=1e-6, atol=0)
    torch.testing.assert_close(next_token_loss(LOGITS, TOKENS).double(), means.mean(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("dtype", "wanted"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_logits_are_float32_at_least(dtype: torch.dtype, wanted: torch.dtype) -> None:
    hidden = torch.randn(2, 4, 8, dtype=dtype)
    assert {piece.logits.dtype for piece in logits_in_pieces(lambda states: states, hidden, 3)} == {wanted}
