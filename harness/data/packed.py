"""Windows of a packed stream of training text, and held-out windows of the same text.

Shapes: N windows, L tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from harness.core.rng import rng
from harness.data.corpora import corpus_named, read_text
from harness.data.windows import encode, once
from harness.runtime.errors import UserError

HELD_OUT = 0.05
"""The share of a text's rows, its last ones, that training never sees."""
HELD_OUT_WINDOWS = 16
"""Windows of them that are judged, at most."""


def training_windows(corpus: str, split: str, tokenizer: Any, length: int, tokens: int, seed: int) -> Tensor:
    """Non-overlapping windows (N, L) for `tokens` tokens, or as many as the text has without its held-out rows.

    Documents come in an order drawn by the seed, with a mark between them: the token that the tokenizer opens a text
    with, or else its end-of-text token. Rows of a running text stay in their order.

    Raises:
        UserError: the text has not even one window.
    """
    text = read_text(corpus, split)
    count = math.ceil(tokens / length)

    def draw() -> Tensor:
        rows = text.rows[: _first_held_out(text.rows)]
        if corpus_named(corpus).sampling == "documents":
            order = rng(seed, "documents of a recovery").sample(range(len(rows)), len(rows))
            return _packed(_documents((rows[index] for index in order), tokenizer), length, count, corpus)
        return _packed([encode(tokenizer, text.join.join(rows))], length, count, corpus)

    return once(tokenizer, ("training", text.sha256, corpus, split, length, count, seed), draw)


def held_out_windows(corpus: str, split: str, tokenizer: Any, length: int) -> Tensor:
    """The first windows (N, L) of the rows that training never sees, at most `HELD_OUT_WINDOWS`.

    Raises:
        UserError: they have not even one window.
    """
    text = read_text(corpus, split)

    def draw() -> Tensor:
        rows = text.rows[_first_held_out(text.rows) :]
        if corpus_named(corpus).sampling == "documents":
            return _packed(_documents(rows, tokenizer), length, HELD_OUT_WINDOWS, corpus)
        return _packed([encode(tokenizer, text.join.join(rows))], length, HELD_OUT_WINDOWS, corpus)

    return once(tokenizer, ("held out", text.sha256, corpus, split, length), draw)


def _first_held_out(rows: Sequence[str]) -> int:
    return len(rows) - max(1, math.ceil(HELD_OUT * len(rows)))


def _documents(rows: Iterable[str], tokenizer: Any) -> Iterator[list[int]]:
    """Each document with one mark in front of it or behind it."""
    end = getattr(tokenizer, "eos_token_id", None)
    marks = {getattr(tokenizer, "bos_token_id", None), end}
    for row in rows:
        tokens = encode(tokenizer, row)
        if tokens:
            yield tokens if end is None or tokens[0] in marks else [*tokens, end]


def _packed(parts: Iterable[list[int]], length: int, count: int, corpus: str) -> Tensor:
    stream: list[int] = []
    for tokens in parts:
        stream += tokens
        if len(stream) >= count * length:
            break
    count = min(count, len(stream) // length)
    if not count:
        raise UserError(
            f"recovery.text={corpus} has {len(stream)} tokens where one window of {length} is needed (the last "
            f"{HELD_OUT:.0%} of the text are held out); take a smaller recovery.length or another text."
        )
    return torch.tensor(stream[: count * length]).reshape(count, length)
