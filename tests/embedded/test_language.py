"""The embedded default is what its generator makes: texts, tasks, tokens, and the floor that they are held against."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from harness.data.corpora import EMBEDDED, read_text

ASSETS = EMBEDDED


@pytest.mark.parametrize("task", ["embedded-cloze", "embedded-facts"])
def test_tasks_have_500_items_with_balanced_answers(task: str) -> None:
    items = [json.loads(line) for line in (ASSETS / "tasks" / f"{task}.jsonl").open()]
    assert len(items) == 500
    assert all(len(set(item["choices"])) == len(item["choices"]) == 4 for item in items)
    gold = Counter(item["gold"] for item in items)
    assert max(gold.values()) - min(gold.values()) <= 1


@pytest.mark.parametrize("model", ["embedded-llama", "embedded-opt"])
def test_models_are_small_and_their_tokens_are_words(model: str) -> None:
    folder = ASSETS / model
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 4 * 2**20
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = read_text("embedded-a", "test").rows[0]
    tokens = tokenizer(text)["input_ids"]
    assert tokens[0] == tokenizer.bos_token_id
    assert tokenizer.convert_ids_to_tokens(tokens[1:]) == text.split()
    assert tokenizer.unk_token_id not in tokens


def test_texts_do_not_share_documents() -> None:
    seen: set[str] = set()
    for name in ("embedded-a", "embedded-b", "embedded-c"):
        for split in ("train", "test"):
            rows = set(read_text(name, split).rows)
            assert not rows & seen
            seen |= rows


def test_corpora_are_made_again_byte_by_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.embedded import __main__ as make
    from harness.embedded import data, tasks

    for module in (data, tasks):
        monkeypatch.setattr(module, "ASSETS", tmp_path)
    monkeypatch.setattr("sys.argv", ["embedded", "--only", "texts"])
    make.main()
    for kind in ("corpora", "tasks"):
        made = {path.name: path.read_bytes() for path in (tmp_path / kind).iterdir()}
        assert made == {path.name: path.read_bytes() for path in (ASSETS / kind).iterdir()}
