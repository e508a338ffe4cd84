"""Tokens of a text unknown to model or tokenizer: without a row in the embedding, or the unknown token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.runtime.errors import UserError
from harness.runtime.warn import warn

TOLD = 5e-4
"""The share of unknown tokens from which on a reader of the numbers should know it."""
REFUSED = 0.5
"""The share beyond which a number says nothing of the model."""


def check_tokens(tokens: Tensor, tokenizer: Any, rows: int, text: str) -> float:
    """Look at the tokens of a text before a model does.

    Args:
        tokens: of any shape, on a CPU.
        rows: of the model's embedding.
        text: how a user names it, `evaluation=ptb`.

    Returns:
        The share of the unknown token, 0 where the vocabulary has none.

    Raises:
        UserError: a token has no row, or most of them are the unknown one.
    """
    if tokens.numel() and (highest := int(tokens.max())) >= rows:
        raise UserError(
            f"{text} has the token {highest}, the model has rows for {rows} tokens: tokenizer and model do not belong "
            "together."
        )
    share = unknown_share(tokens, tokenizer)
    if share > REFUSED:
        raise UserError(
            f"{share:.0%} of the tokens of {text} are the unknown one: this vocabulary is not of that text, or not "
            "whole; look at the tokenizer's files."
        )
    return share


def tell_unknown(share: float, text: str) -> None:
    """Remark on a share that a reader should know."""
    if share > TOLD:
        warn(unknown_tokens(share, text))


def unknown_tokens(share: float, text: str) -> str:
    """The warning."""
    return f"{share:.2%} of the tokens of {text} are the unknown one"


def unknown_share(tokens: Tensor, tokenizer: Any) -> float:
    """The share of the token that stands for what the vocabulary lacks.

    Where it also opens or closes texts (GPT-2's), it says something only if it is most of them.
    """
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is None or not tokens.numel():
        return 0.0
    share = float((tokens == unknown).double().mean())
    marks = (getattr(tokenizer, "bos_token_id", None), getattr(tokenizer, "eos_token_id", None))
    return share if unknown not in marks or share > REFUSED else 0.0


def embedding_rows(model: torch.nn.Module) -> int:
    """How many tokens a model has rows for."""
    return int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
