"""The packed stream of training text: every token once, documents apart, and rows that training never sees."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from harness.data import packed
from harness.data.corpora import EMBEDDED, Text, read_text
from harness.data.packed import HELD_OUT, HELD_OUT_WINDOWS, held_out_windows, training_windows
from harness.runtime.errors import UserError


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(EMBEDDED / "embedded-llama")


def test_windows_are_whole_documents_in_a_row(tokenizer: Any) -> None:
    """Cut again at the token that opens a text, they are the documents, each once, but for those held out."""
    rows = read_text("embedded-a", "train").rows
    windows = training_windows("embedded-a", "train", tokenizer, 64, 10**9, seed=0)
    stream = windows.flatten().tolist()
    opens = [place for place, token in enumerate(stream) if token == tokenizer.bos_token_id]
    parts = [tuple(stream[start:end]) for start, end in pairwise(opens)]
    documents = [tuple(tokenizer(row)["input_ids"]) for row in rows]
    kept = len(rows) - math.ceil(HELD_OUT * len(rows))
    assert len(opens) == kept and set(parts) < set(documents[:kept])
    assert parts != documents[: kept - 1] and sum(map(len, documents[:kept])) - len(stream) < 64


def test_held_out_rows_are_the_last_ones(tokenizer: Any) -> None:
    rows = read_text("embedded-a", "train").rows
    windows = held_out_windows("embedded-a", "train", tokenizer, 64)
    assert windows.shape == (HELD_OUT_WINDOWS, 64)
    last = [token for row in rows[-math.ceil(HELD_OUT * len(rows)) :] for token in tokenizer(row)["input_ids"]]
    assert windows.flatten().tolist() == last[: windows.numel()]


def test_a_budget_takes_what_it_needs_and_a_seed_decides(tokenizer: Any) -> None:
    few, more = (training_windows("embedded-b", "train", tokenizer, 32, tokens, seed=0) for tokens in (65, 640))
    assert few.shape == (3, 32) and torch.equal(few, more[:3])
    assert not torch.equal(training_windows("embedded-b", "train", tokenizer, 32, 65, seed=1), few)


class Plain:
    """A tokenizer with no token of its own in front; 9 is its end of text."""

    eos_token_id = 9

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [len(word) for word in text.split()]}


def test_documents_without_a_mark_of_their_own_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    short = Text(("a bb", "ccc", "dddd"), " ", "0", "made up", None)
    monkeypatch.setattr(packed, "read_text", lambda *_: short)
    assert held_out_windows("embedded-a", "train", Plain(), 2).tolist() == [[4, 9]]
    stream = training_windows("embedded-a", "train", Plain(), 5, 5, seed=0).flatten().tolist()
    assert stream in ([1, 2, 9, 3, 9], [3, 9, 1, 2, 9])
    with pytest.raises(UserError, match=r"^recovery.text=embedded-a has 5 tokens where one window of 6 is needed"):
        training_windows("embedded-a", "train", Plain(), 6, 5, seed=0)
    assert training_windows("wikitext2", "train", Plain(), 3, 5, seed=0).tolist() == [[1, 2, 3]]  # a running text
