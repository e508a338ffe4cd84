"""Corpora, training stream and tokenizer: what the generator's documents become on disk and in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from multiprocessing import Pool
from pathlib import Path
from random import Random

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from harness.embedded.language import STYLE_NAMES, Document, Language

ASSETS = Path(__file__).parent / "assets"
SPECIAL = ("<s>", "</s>", "<unk>", "<pad>")
TRAIN_DOCUMENTS = 300
TEST_TOKENS = 40_000
# Streams of random numbers that never meet: every use of the generator has its own base.
SEEDS = {"train": 1_000, "test": 2_000, "cloze": 3_000, "facts": 4_000, "stream": 1_000_000}
CHUNK_DOCUMENTS = 600


def corpus(language: Language, style: str, split: str) -> list[Document]:
    """The documents of one corpus file, always the same."""
    rng = Random(SEEDS[split] + STYLE_NAMES.index(style))
    documents: list[Document] = []
    if split == "train":
        return [language.document(rng, style) for _ in range(TRAIN_DOCUMENTS)]
    while sum(len(d.text.tokens) for d in documents) < TEST_TOKENS:
        documents.append(language.document(rng, style))
    return documents


def corpus_path(style: str, split: str) -> Path:
    """Where a corpus file lies."""
    return ASSETS / "corpora" / f"embedded-{style}.{split}.jsonl"


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> None:
    """One JSON object per line, with nothing in it that depends on the machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8", newline="\n")


def write_corpora(language: Language) -> None:
    """Write the three corpora."""
    for style in STYLE_NAMES:
        for split in ("train", "test"):
            rows: list[dict[str, object]] = [{"text": str(d.text)} for d in corpus(language, style, split)]
            write_jsonl(corpus_path(style, split), rows)


def token_ids(language: Language) -> dict[str, int]:
    """The vocabulary: special tokens, then every word of the language; padded to a multiple of 16."""
    words = [*SPECIAL, *language.vocabulary()]
    words += [f"<unused{i}>" for i in range(-len(words) % 16)]
    return {word: i for i, word in enumerate(words)}


def write_tokenizer(language: Language, folder: Path) -> None:
    """A word-level tokenizer that puts <s> first, as LLaMA's does."""
    tokenizer = Tokenizer(models.WordLevel(token_ids(language), unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _chunk(number: int) -> np.ndarray:
    """Documents of all styles as ids; a pure function of its number, so that processes may share the work."""
    language = Language()
    ids = token_ids(language)
    rng = Random(SEEDS["stream"] + number)
    out: list[int] = []
    for i in range(CHUNK_DOCUMENTS):
        out += [ids[t] for t in language.document(rng, STYLE_NAMES[i % 3]).text.tokens]
    return np.array(out, dtype=np.int16)


def _corpus_train_ids(language: Language) -> np.ndarray:
    ids = token_ids(language)
    documents = [d for style in STYLE_NAMES for d in corpus(language, style, "train")]
    return np.array([ids[t] for d in documents for t in d.text.tokens], dtype=np.int16)


def training_stream(tokens: int, processes: int = 2) -> np.ndarray:
    """At least `tokens` ids of training text: the corpora's train documents, then fresh ones."""
    language = Language()
    first = _corpus_train_ids(language)
    chunks = max(0, -(-(tokens - len(first)) // (CHUNK_DOCUMENTS * 400)))
    with Pool(processes) as pool:
        rest = pool.map(_chunk, range(chunks))
    return np.concatenate([first, *rest])


def windows(text: np.ndarray, length: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Non-overlapping windows of the text in random order, for one pass; half of them begin with <s>."""
    shift = int(rng.integers(length))
    starts = np.arange(shift, len(text) - length + 1, length)
    rng.shuffle(starts)
    for start in starts:
        window = text[start : start + length].astype(np.int64)
        if rng.random() < 0.5:
            window[0] = 0
        yield window
