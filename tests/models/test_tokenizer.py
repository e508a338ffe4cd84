"""A tokenizer without its vocabulary is refused by the name of the file, whatever its class."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpoints import choice, sentence
from helpers import tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from harness.models.checkpoint import find_checkpoint
from harness.models.tokenizer import load_tokenizer

CLASSES = ["T5Tokenizer", "BertTokenizer", "LlamaTokenizer", "GPT2Tokenizer", "Qwen2Tokenizer", "GemmaTokenizer",
           "PreTrainedTokenizerFast"]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny LLaMA as a checkpoint without a tokenizer."""
    tiny("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def name_class(folder: Path, name: str) -> None:
    content = {"tokenizer_class": name, "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(content), encoding="utf-8")


def save_bytes(folder: Path) -> None:
    """A byte-level vocabulary in `tokenizer.json`, `vocab.json` and `merges.txt`."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words.train_from_iterator(["low lower lowest"] * 9, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    words.save(str(folder / "tokenizer.json"))
    words.model.save(str(folder))


@pytest.mark.parametrize("name", CLASSES)
def test_no_vocabulary_at_all(folder: Path, name: str) -> None:
    name_class(folder, name)
    said = sentence(lambda: load_tokenizer(find_checkpoint(choice(folder)), choice(folder)))
    assert said.startswith(f"{folder} holds no vocabulary of a tokenizer (tokenizer.json, tokenizer.model, vocab.json")


@pytest.mark.parametrize(
    ("name", "there", "lacking"),
    [
        ("GPT2Tokenizer", "vocab.json", "merges.txt"),
        ("GPT2Tokenizer", "vocab.txt", "vocab.json"),
        ("Qwen2Tokenizer", "vocab.json", "merges.txt"),
        ("T5Tokenizer", "vocab.txt", "spiece.model"),
        ("BertTokenizer", "vocab.json", "vocab.txt"),
        ("LlamaTokenizer", "vocab.json", "tokenizer.model"),
    ],
)
def test_the_vocabulary_of_another_class(folder: Path, name: str, there: str, lacking: str) -> None:
    save_bytes(folder)
    kept = (folder / "vocab.json").read_bytes()
    for path in ("tokenizer.json", "vocab.json", "merges.txt"):
        (folder / path).unlink()
    (folder / there).write_bytes(kept)
    name_class(folder, name)
    said = sentence(lambda: load_tokenizer(find_checkpoint(choice(folder)), choice(folder)))
    assert lacking in said or "has no tokenizer that can be loaded" in said


@pytest.mark.parametrize("left_out", [(), ("tokenizer.json",), ("vocab.json", "merges.txt")])
def test_whole_vocabularies_load(folder: Path, left_out: tuple[str, ...]) -> None:
    save_bytes(folder)
    for name in left_out:
        (folder / name).unlink()
    name_class(folder, "GPT2Tokenizer")
    tokenizer = load_tokenizer(find_checkpoint(choice(folder)), choice(folder))
    ids = tokenizer("lower low")["input_ids"]
    assert tokenizer.decode(ids) == "lower low" and len(ids) < len("lower low")
