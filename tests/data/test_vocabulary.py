"""Tokens that a model has no row for, and texts that a vocabulary does not know."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from harness.data.vocabulary import check_tokens, tell_unknown, unknown_share
from harness.runtime.errors import UserError
from harness.runtime.warn import collected_warnings

PLAIN = SimpleNamespace(unk_token_id=3, bos_token_id=1, eos_token_id=2)
AS_BOS = SimpleNamespace(unk_token_id=1, bos_token_id=1, eos_token_id=1)
NONE = SimpleNamespace(unk_token_id=None, bos_token_id=1, eos_token_id=2)


def test_a_token_beyond_the_embedding() -> None:
    tokens = torch.tensor([[1, 63], [599, 4]])
    assert check_tokens(tokens, NONE, 600, "evaluation=ptb") == 0.0
    with pytest.raises(UserError) as caught:
        check_tokens(tokens, NONE, 599, "evaluation=ptb")
    assert str(caught.value) == (
        "evaluation=ptb has the token 599, the model has rows for 599 tokens: tokenizer and model do not belong "
        "together."
    )


def test_the_share_of_unknown_tokens() -> None:
    tokens = torch.tensor([3, 4, 5, 6, 1, 1, 1, 1])
    assert unknown_share(tokens, PLAIN) == 1 / 8
    assert unknown_share(tokens, NONE) == unknown_share(tokens[:0], PLAIN) == 0.0
    assert unknown_share(tokens, AS_BOS) == 0.0, "half of them open texts, for all that is known"


@pytest.mark.parametrize("tokenizer", [PLAIN, AS_BOS])
def test_a_text_of_unknown_tokens(tokenizer: SimpleNamespace) -> None:
    tokens = torch.full((2, 10), tokenizer.unk_token_id)
    tokens[0, :9] = 7
    assert check_tokens(tokens[:, :9], tokenizer, 64, "calibration=c4") in (0.0, 0.5)
    with pytest.raises(UserError, match=r"55% of the tokens of calibration=c4 are the unknown one"):
        check_tokens(tokens, tokenizer, 64, "calibration=c4")


@pytest.mark.parametrize(("share", "told"), [(0.0, 0), (0.0004, 0), (0.0006, 1), (0.3, 1)])
def test_a_share_that_a_reader_should_know_is_remarked(share: float, told: int) -> None:
    with collected_warnings() as heard:
        tell_unknown(share, "evaluation=ptb")
    assert len(heard) == told
    assert heard[:1] in ([], [f"{share:.2%} of the tokens of evaluation=ptb are the unknown one"])
