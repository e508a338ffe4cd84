"""Token windows: the papers' samplers for calibration, the papers' cutting for perplexity.

Shapes: N windows, L tokens.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from harness.data.corpora import Text, corpus_named, read_text
from harness.runtime.errors import UserError, reason


@dataclass(frozen=True)
class Calibration:
    """Which windows a method sees: how many, how long (None: the model file's), drawn with which seed."""

    corpus: str
    windows: int = 128
    length: int | None = None
    seed: int = 0
    split: str = "train"

    def __post_init__(self) -> None:
        corpus_named(self.corpus)
        if self.windows < 1 or (self.length is not None and self.length < 2):
            raise UserError("calibration.windows has to be at least 1 and calibration.length at least 2.")


_drawn: WeakKeyDictionary[Any, dict[Hashable, Tensor]] = WeakKeyDictionary()
"""Windows by tokenizer, for as long as it lives: every point of a sweep asks for the same ones."""


def once(tokenizer: Any, key: Hashable, draw: Callable[[], Tensor]) -> Tensor:
    """The draw kept under a key, which tells the text by its hash, with this tokenizer; or one made now."""
    known = _drawn.setdefault(tokenizer, {})
    if key not in known:
        known[key] = draw()
    return known[key].clone()


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids with the tokenizer's own special tokens (one BOS at the start where it adds one).

    Raises:
        UserError: the tokenizer has no token for something in the text, not even an unknown one.
    """
    try:
        return list(tokenizer(text, verbose=False)["input_ids"])
    except MemoryError:
        raise
    except Exception as error:
        where = getattr(tokenizer, "name_or_path", "")
        raise UserError(
            f"the tokenizer of {where} cannot split the text ({reason(error)}); look at its files."
        ) from error


def calibration_windows(calibration: Calibration, tokenizer: Any, length: int) -> Tensor:
    """Windows (N, L), drawn exactly as the SparseGPT and Wanda loaders draw them (`datautils.py`, `lib/data.py`).

    Documents: Python's generator picks documents until one is longer than the window, then a start in it.
    Stream: all rows joined, one random start per window. Windows of tokens that were given are taken as they are, from
    the first one on.

    Raises:
        UserError: no document, or the whole text, is not longer than the window.
    """
    text = read_text(calibration.corpus, calibration.split)
    if text.windows is not None:
        return text.windows[: calibration.windows].clone()
    key = ("calibration", text.sha256, calibration, length)
    return once(tokenizer, key, lambda: _draw(calibration, text, tokenizer, length))


def _draw(calibration: Calibration, text: Text, tokenizer: Any, length: int) -> Tensor:
    generator = random.Random(calibration.seed)
    if corpus_named(calibration.corpus).sampling == "stream":
        tokens = encode(tokenizer, text.join.join(text.rows))
        if len(tokens) <= length:
            raise UserError(
                f"calibration={calibration.corpus} has {len(tokens)} tokens; windows of {length} need more."
            )
        drawn = [_cut(tokens, length, generator) for _ in range(calibration.windows)]
    else:
        drawn = _draw_documents(calibration, text, tokenizer, length, generator)
    return torch.tensor(drawn)


def _draw_documents(
    calibration: Calibration, text: Text, tokenizer: Any, length: int, generator: random.Random
) -> list[list[int]]:
    encoded: dict[int, list[int]] = {}
    short: set[int] = set()
    drawn: list[list[int]] = []
    while len(drawn) < calibration.windows:
        index = generator.randint(0, len(text.rows) - 1)
        if index not in short and index not in encoded:
            tokens = encode(tokenizer, text.rows[index])
            if len(tokens) > length:
                encoded[index] = tokens
            else:
                short.add(index)
        if index in encoded:
            drawn.append(_cut(encoded[index], length, generator))
        elif len(short) == len(text.rows):
            raise UserError(
                f"calibration={calibration.corpus}: none of its {len(text.rows)} documents is longer than "
                f"{length} tokens; take a smaller calibration.length or another text."
            )
    return drawn


def _cut(tokens: list[int], length: int, generator: random.Random) -> list[int]:
    start = generator.randint(0, len(tokens) - length - 1)
    return tokens[start : start + length]


def evaluation_windows(
    corpus: str, split: str, tokenizer: Any, length: int, *, documents: int | None, limit: int | None
) -> Tensor:
    """Non-overlapping windows (N, L) of the joined text, tokenised once; the remainder and all past `limit` dropped.

    Raises:
        UserError: the text is shorter than one window.
    """
    text = read_text(corpus, split)
    if text.windows is not None:
        return text.windows[:limit].clone()
    key = ("evaluation", text.sha256, corpus, split, length, documents, limit)
    return once(tokenizer, key, lambda: _cut_up(corpus, text, tokenizer, length, documents, limit))


def _cut_up(corpus: str, text: Text, tokenizer: Any, length: int, documents: int | None, limit: int | None) -> Tensor:
    tokens = torch.tensor(encode(tokenizer, text.join.join(text.rows[:documents])))
    count = len(tokens) // length
    if not count:
        raise UserError(f"evaluation={corpus} has {len(tokens)} tokens, fewer than one window of {length}.")
    count = min(count, limit or count)
    return tokens[: count * length].reshape(count, length)
