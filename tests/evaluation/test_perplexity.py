"""The mean negative log-likelihood is the model's own loss, however few windows the head takes at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import tiny, windows

from harness.calibration.walk import batches
from harness.evaluation.perplexity import mean_nll
from harness.models.anatomy import FAMILIES
from harness.models.decoder import decoder_of

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("at_once", [1, 3, 7])
def test_it_is_the_models_own_loss(family: str, at_once: int, monkeypatch: Any) -> None:
    model, tokens = tiny(family), windows(7)
    logits = tokens.shape[1] * model.config.get_text_config().vocab_size * 4
    monkeypatch.setattr(batches, "LOGIT_BYTES", at_once * logits)
    seen: list[int] = []
    head = model.get_output_embeddings()
    assert isinstance(head, torch.nn.Module)
    handle = head.register_forward_pre_hook(lambda _, positional: seen.append(len(positional[0])))
    loss = mean_nll(decoder_of(model), tokens, CPU)
    handle.remove()
    with torch.no_grad():
        own = [float(model(window[None], labels=window[None]).loss) for window in tokens]
    assert loss == pytest.approx(sum(own) / 7, rel=1e-6)
    assert seen == {1: [1] * 7, 3: [3, 3, 1], 7: [7]}[at_once]


def test_a_batch_fills_a_gpu_in_sixteen_bits_and_windows_are_never_cut() -> None:
    assert batches.evaluation_tokens(2, cuda=True) == 16384
    assert batches.evaluation_tokens(4, cuda=True) == batches.evaluation_tokens(2, cuda=False) == 4096
