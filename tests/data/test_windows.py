"""Windows token for token: against literal transcriptions of what the published loaders do, on a stub tokenizer."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.data import windows
from harness.data.corpora import CORPORA, Text, read_text
from harness.data.windows import Calibration, calibration_windows, encode, evaluation_windows
from harness.runtime.errors import UserError


class Stub:
    """A BOS and one token per character, every call written down."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        self.calls.append(text)
        return {"input_ids": [1, *map(ord, text)]}


def give(monkeypatch: pytest.MonkeyPatch, rows: list[str], join: str = " ") -> None:
    """Let every corpus be these rows."""
    text = Text(tuple(rows), join, "sha", "made up", None)
    monkeypatch.setattr(windows, "read_text", lambda name, split: text)


def documents(seed: int = 0, lengths: range = range(1, 40), count: int = 60) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices("abcdefgh", k=draw.choice(lengths))) for _ in range(count)]


def published_c4(rows: list[str], tokenizer: Any, count: int, length: int, seed: int) -> Tensor:
    """`get_c4`: seed once; pick documents until one has more tokens than the window; then a start, ends included."""
    state = random.getstate()
    random.seed(seed)
    drawn = []
    for _ in range(count):
        while True:
            i = random.randint(0, len(rows) - 1)
            tokens = tokenizer(rows[i])["input_ids"]
            if len(tokens) > length:
                break
        i = random.randint(0, len(tokens) - length - 1)
        drawn.append(tokens[i : i + length])
    random.setstate(state)
    return torch.tensor(drawn)


def published_stream(rows: list[str], tokenizer: Any, count: int, length: int, seed: int) -> Tensor:
    """`get_wikitext2` and `get_ptb`: the rows joined by a blank, tokenised once, one start per window."""
    state = random.getstate()
    random.seed(seed)
    tokens = tokenizer(" ".join(rows))["input_ids"]
    starts = [random.randint(0, len(tokens) - length - 1) for _ in range(count)]
    random.setstate(state)
    return torch.tensor([tokens[start : start + length] for start in starts])


@pytest.mark.parametrize("seed", [0, 1, 2, 12345])
@pytest.mark.parametrize("length", [4, 16, 31])
def test_documents_are_drawn_as_published(length: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, documents())
    drawn = calibration_windows(Calibration("c4", 50, seed=seed), Stub(), length)
    assert drawn.shape == (50, length) and drawn.dtype == torch.int64
    assert torch.equal(drawn, published_c4(documents(), Stub(), 50, length, seed))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("corpus", ["wikitext2", "wikitext2-sample", "ptb"])
def test_streams_are_drawn_as_published(corpus: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, documents())
    tokenizer = Stub()
    drawn = calibration_windows(Calibration(corpus, 50, seed=seed), tokenizer, 16)
    assert torch.equal(drawn, published_stream(documents(), Stub(), 50, 16, seed))
    assert tokenizer.calls == [" ".join(documents())]


def test_drawing_leaves_the_global_generator_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, documents())
    random.seed(7)
    before = random.getstate()
    calibration_windows(Calibration("c4", 5), Stub(), 8)
    assert random.getstate() == before


def test_a_document_has_to_be_longer_than_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strictly: eight tokens give no window of eight, nine give those that start at 0, never the one at 1."""
    give(monkeypatch, ["abcdefg", "ABCDEFGH"])  # 8 and 9 tokens with their BOS
    drawn = calibration_windows(Calibration("c4", 40), Stub(), 8)
    assert {tuple(window) for window in drawn.tolist()} == {(1, *map(ord, "ABCDEFG"))}
    give(monkeypatch, ["ABCDEFGHI"])
    drawn = calibration_windows(Calibration("c4", 40), Stub(), 8)
    assert {window[0] for window in drawn.tolist()} == {1, ord("A")}  # starts 0 and 1, both ends drawn


def test_documents_are_tokenised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, documents())
    tokenizer = Stub()
    calibration_windows(Calibration("c4", 100), tokenizer, 16)
    assert len(tokenizer.calls) == len(set(tokenizer.calls))


def test_no_document_is_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, documents(lengths=range(1, 10)))
    with pytest.raises(UserError, match=r"^calibration=c4: none of its 60 documents is longer than 16 tokens; take a"):
        calibration_windows(Calibration("c4", 5), Stub(), 16)


def test_a_stream_that_is_too_short(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, ["abc", "def"])  # 8 tokens
    with pytest.raises(UserError, match=r"^calibration=ptb has 8 tokens; windows of 8 need more\.$"):
        calibration_windows(Calibration("ptb", 5), Stub(), 8)
    assert calibration_windows(Calibration("ptb", 2), Stub(), 7)[:, 0].tolist() == [1, 1]


@pytest.mark.parametrize("wrong", [{"windows": 0}, {"windows": -1}, {"length": 1}, {"length": 0}])
def test_settings_of_calibration(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"calibration.windows has to be at least 1 and calibration.length at least 2"):
        Calibration("c4", **wrong)
    with pytest.raises(UserError, match=r"unknown corpus 'c5'; did you mean c4"):
        Calibration("c5")


def test_evaluation_windows_do_not_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text once through the tokenizer, so one BOS; whole windows in order; the rest dropped."""
    rows, tokenizer = ["abcdef", "", "ghijkl"], Stub()
    give(monkeypatch, rows, "\n\n")
    cut = evaluation_windows("wikitext2", "test", tokenizer, 4, documents=None, limit=None)
    assert tokenizer.calls == ["abcdef\n\n\n\nghijkl"]
    assert cut.flatten().tolist() == [1, *map(ord, "abcdef\n\n\n\nghijkl")][:16] and cut.shape == (4, 4)
    limited = evaluation_windows("wikitext2", "test", Stub(), 4, documents=None, limit=3)
    assert torch.equal(limited, cut[:3])
    assert len(evaluation_windows("wikitext2", "test", Stub(), 4, documents=None, limit=99)) == 4
    few = evaluation_windows("c4", "validation", Stub(), 4, documents=1, limit=256)
    assert few.tolist() == [[1, *map(ord, "abc")]]
    with pytest.raises(UserError, match=r"^evaluation=ptb has 17 tokens, fewer than one window of 18\.$"):
        evaluation_windows("ptb", "test", Stub(), 18, documents=None, limit=None)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(Path(os.environ["HARNESS_ASSETS"]) / "models" / "proxy-llama-11m")


@pytest.mark.assets
@pytest.mark.parametrize(("corpus", "tokens"), [("wikitext2", 333_263), ("ptb", 99_072)])
def test_real_tests_have_the_tokens_they_are_known_to_have(corpus: str, tokens: int, tokenizer: Any) -> None:
    text = read_text(corpus, "test")
    ids = encode(tokenizer, text.join.join(text.rows))
    assert len(ids) == tokens
    assert ids[0] == tokenizer.bos_token_id and tokenizer.bos_token_id not in ids[1:]
    cut = evaluation_windows(corpus, "test", tokenizer, 512, documents=None, limit=None)
    assert cut.shape == (tokens // 512, 512) and cut.flatten().tolist() == ids[: tokens // 512 * 512]


@pytest.mark.assets
def test_the_c4_sample_has_256_windows(tokenizer: Any) -> None:
    cut = evaluation_windows("c4-sample", "validation", tokenizer, 512, documents=1100, limit=256)
    assert cut.numel() == 131_072 and len(read_text("c4-sample", "validation").rows) == 2000
    start = encode(tokenizer, " ".join(read_text("c4-sample", "validation").rows[:300]))
    assert cut.flatten().tolist()[: len(start) - 10] == start[:-10][:131_072]


@pytest.mark.assets
@pytest.mark.parametrize("seed", [0, 1])
def test_real_calibration_is_drawn_as_published(seed: int, tokenizer: Any) -> None:
    rows = list(read_text("c4-sample", "train").rows)
    assert len(rows) == 1000
    drawn = calibration_windows(Calibration("c4-sample", 16, seed=seed), tokenizer, 512)
    assert torch.equal(drawn, published_c4(rows, tokenizer, 16, 512, seed))


@pytest.mark.assets
def test_every_local_file_is_the_one_known() -> None:
    for corpus in CORPORA.values():
        for name, split in corpus.splits.items():
            if split.local and split.local.sha256:
                assert read_text(corpus.name, name).sha256 == split.local.sha256
    assert len(read_text("ptb", "test").rows) == 3761
    assert len(read_text("wikitext2", "test").rows) == 4358
