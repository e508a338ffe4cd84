"""A tokenizer without its vocabulary is refused by the name of the file, whatever its class."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpoints import choice, sentence
from helpers import tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from harness.data.windows import encode
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


def test_merges_that_are_missing_are_named(folder: Path) -> None:
    save_bytes(folder)
    for name in ("tokenizer.json", "merges.txt"):
        (folder / name).unlink()
    name_class(folder, "GPT2Tokenizer")
    said = sentence(lambda: load_tokenizer(find_checkpoint(choice(folder)), choice(folder)))
    assert (
        said
        == f"{folder} lacks merges.txt, without which its vocab.json is no tokenizer; copy it there, or tokenizer.json."
    )


def test_a_vocabulary_of_nothing(folder: Path) -> None:
    name_class(folder, "GPT2Tokenizer")
    (folder / "vocab.json").write_text("{}")
    (folder / "merges.txt").write_text("")
    said = sentence(lambda: load_tokenizer(find_checkpoint(choice(folder)), choice(folder)))
    assert said == f"the vocabulary of the tokenizer in {folder} is empty; copy its files there again."


def test_a_package_that_is_missing_is_the_one_that_reads_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.models.tokenizer.find_spec", lambda name: None)
    name_class(folder, "LlamaTokenizer")
    (folder / "tokenizer.model").write_bytes(b"not one")
    said = sentence(lambda: load_tokenizer(find_checkpoint(choice(folder)), choice(folder)))
    assert said == (
        f"{folder} has its vocabulary in tokenizer.model: pip install sentencepiece, or copy tokenizer.json there."
    )


@pytest.mark.parametrize(
    ("encoding", "why"),
    [
        ("utf-8-sig", "opens with a byte order mark; save it as UTF-8 without one."),
        ("utf-16", "opens with a byte order mark; save it as UTF-8 without one."),
        ("latin-1", "is not in UTF-8; save it as UTF-8."),
    ],
)
def test_the_encoding_of_its_files_is_named(folder: Path, encoding: str, why: str) -> None:
    save_bytes(folder)
    path = folder / "tokenizer.json"
    path.write_bytes(path.read_text(encoding="utf-8").encode(encoding, "ignore") + b"\xfc")
    said = sentence(lambda: load_tokenizer(find_checkpoint(choice(folder)), choice(folder)))
    assert said == f"{path} {why}"


def test_a_text_that_it_has_no_tokens_for(folder: Path) -> None:
    """No unknown token in the vocabulary: the library below raises an exception without a type of its own."""
    Tokenizer(models.WordLevel({"a": 0}, unk_token="<unk>")).save(str(folder / "tokenizer.json"))
    name_class(folder, "PreTrainedTokenizerFast")
    tokenizer = load_tokenizer(find_checkpoint(choice(folder)), choice(folder))
    said = sentence(lambda: encode(tokenizer, "b"))
    assert said.startswith(f"the tokenizer of {folder} cannot split the text (") and "[UNK]" in said
