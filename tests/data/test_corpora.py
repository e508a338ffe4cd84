"""Texts from files: rows as the hub has them, hashes, and what is said when a file is missing, wrong or broken."""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.data import corpora
from harness.data.corpora import CORPORA, assets, corpus_named, read_text
from harness.runtime.errors import UserError

Place = Callable[..., Path]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Put bytes where a split's local file is looked for, and let their hash be the known one."""
    monkeypatch.setenv("HARNESS_ASSETS", str(tmp_path))

    def put(name: str, split: str, data: bytes, *, known: bool = True) -> Path:
        corpus = CORPORA[name]
        local = corpus.splits[split].local
        path = tmp_path / "data" / local.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
        if known:
            local = replace(local, sha256=hashlib.sha256(data).hexdigest())
            splits = corpus.splits | {split: replace(corpus.splits[split], local=local)}
            monkeypatch.setitem(CORPORA, name, replace(corpus, splits=splits))
        return path

    return put


def sentence(name: str, split: str) -> str:
    with pytest.raises(UserError) as caught:
        read_text(name, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_rows_of_wikitext_are_those_of_the_hub(place: Place) -> None:
    """A blank line is an empty row, every other keeps its blanks and its line feed; U+2028 ends no line."""
    place("wikitext2", "test", " \n = Title = \n \n A\u2028b . \n".encode())
    text = read_text("wikitext2", "test")
    assert text.rows == ("", " = Title = \n", "", " A\u2028b . \n")
    assert text.join.join(text.rows) == "\n\n = Title = \n\n\n\n\n A\u2028b . \n"


def test_rows_of_ptb_are_stripped(place: Place) -> None:
    place("ptb", "test", b" no it was n't \n but  <unk> N \n\n")
    text = read_text("ptb", "test")
    assert text.rows == ("no it was n't", "but  <unk> N")
    assert text.join.join(text.rows) == "no it was n't but  <unk> N"


def test_rows_of_c4_are_the_texts(place: Place) -> None:
    texts = ["one\ntwo", "", "thr\u2028ee"]
    data = "".join(json.dumps({"text": t, "url": "u"}, ensure_ascii=False) + "\n" for t in texts).encode()
    place("c4-sample", "train", data)
    text = read_text("c4-sample", "train")
    assert text.rows == tuple(texts) and text.join == " "
    assert text.sha256 == hashlib.sha256(data).hexdigest()  # of the uncompressed bytes
    assert (text.source, text.revision) == ("c4/c4-train.00000-of-01024.first1000.jsonl.gz", None)


def test_a_file_that_is_not_the_one_known(place: Place) -> None:
    path = place("wikitext2", "test", b"something else\n", known=False)
    digest = hashlib.sha256(b"something else\n").hexdigest()
    said = sentence("wikitext2", "test")
    assert said.startswith(f"the file {path} is not the one known") and f"its sha256 is {digest[:12]}…, " in said
    assert "173c87a53759… is expected; fetch it again or remove it." in said


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def scrambled(data: bytes) -> bytes:
    return data[:20] + bytes(byte ^ 0xFF for byte in data[20:60]) + data[60:]


def wrong_sum(data: bytes) -> bytes:
    return data[:-8] + bytes(4) + data[-4:]


def no_gzip(_: bytes) -> bytes:
    return b"not compressed"


@pytest.mark.parametrize("damage", [cut, scrambled, wrong_sum, no_gzip])
def test_a_damaged_archive(place: Place, damage: Callable[[bytes], bytes]) -> None:
    rows = "".join(json.dumps({"text": f"document {i} {i * i}"}) + "\n" for i in range(200))
    path = place("c4-sample", "train", rows.encode())
    path.write_bytes(damage(path.read_bytes()))
    said = sentence("c4-sample", "train")
    assert said.startswith(f"the file {path}") and "cannot be read: " in said


def test_a_missing_local_file_says_where_it_belongs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = "set HARNESS_ASSETS to the folder that holds data/wikitext2/wiki.train.first1MB.raw."
    monkeypatch.delenv("HARNESS_ASSETS", raising=False)
    assert assets() is None
    assert sentence("wikitext2-sample", "train").endswith(expected)
    monkeypatch.setenv("HARNESS_ASSETS", str(tmp_path))
    assert sentence("wikitext2-sample", "train").endswith(expected)


@pytest.mark.parametrize("name", ["c4", "ptb", "wikitext2"])
def test_a_missing_hub_says_how_to_get_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: Any) -> Any:
        raise ConnectionError("no network in tests")

    monkeypatch.setenv("HARNESS_ASSETS", str(tmp_path))
    monkeypatch.setattr(corpora, "_hub_file_rows", no_network)
    monkeypatch.setattr(corpora, "_hub_dataset_rows", no_network)
    said = sentence(name, "train")
    assert said.startswith(
        f"the corpus '{name}' is neither below HARNESS_ASSETS nor to be had from the hub (Connection"
    )
    assert said.endswith(f"on a machine with a network run: python -m harness prefetch calibration={name}")


def test_a_file_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one shard that the loaders read, at the revision that is pinned; the resolved one is kept."""
    asked: dict[str, Any] = {}
    snapshot = tmp_path / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    (snapshot / "shard.json.gz").write_bytes(gzip.compress(b'{"text": "one"}\n{"text": "two"}\n'))

    def download(repository: str, file: str, **options: Any) -> str:
        asked.update(options, repository=repository, file=file)
        return str(snapshot / "shard.json.gz")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    text = read_text("c4", "train")
    assert text.rows == ("one", "two") and text.revision == "abc123"
    assert (asked["repository"], asked["file"]) == ("allenai/c4", "en/c4-train.00000-of-01024.json.gz")
    assert asked["repo_type"] == "dataset" and asked["revision"] == CORPORA["c4"].splits["train"].hub.revision


@pytest.mark.parametrize("offline", [False, True])
def test_a_dataset_of_the_hub(offline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(*where: Any, **options: Any) -> dict[str, list[str]]:
        asked.append((where, options))
        return {"sentence": ["a b", "c"]}

    def info(*_: Any, **__: Any) -> Any:
        if offline:
            raise ConnectionError
        return SimpleNamespace(sha="resolved")

    monkeypatch.delenv("HARNESS_ASSETS", raising=False)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
    monkeypatch.setattr("huggingface_hub.dataset_info", info)
    text = read_text("ptb", "train")
    assert text.rows == ("a b", "c") and text.join == " "
    assert text.revision == ("refs/convert/parquet" if offline else "resolved")
    [(where, options)] = asked
    assert where == ("ptb-text-only/ptb_text_only", "penn_treebank") and options["split"] == "train"


def test_names_that_do_not_exist() -> None:
    with pytest.raises(UserError, match=r"unknown corpus 'wikitext'; did you mean wikitext2"):
        corpus_named("wikitext")
    assert "unknown split of corpus 'c4': 'test'" in sentence("c4", "test")


def test_a_real_name_never_denotes_a_sample() -> None:
    """`c4` and WikiText-2's train have no local file: their samples are corpora of their own."""
    assert CORPORA["c4"].splits["train"].local is CORPORA["c4"].splits["validation"].local is None
    assert CORPORA["wikitext2"].splits["train"].local is None
    assert all(
        split.hub is None for name in ("c4-sample", "wikitext2-sample") for split in CORPORA[name].splits.values()
    )
    unknown = [
        corpus.name
        for corpus in CORPORA.values()
        for split in corpus.splits.values()
        if split.local and not split.local.embedded and not split.local.sha256
    ]
    assert not unknown  # every local stand-in is known by its hash


def test_an_embedded_text_that_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "EMBEDDED", tmp_path)
    (tmp_path / "corpora").mkdir()
    (tmp_path / "corpora" / "embedded-a.train.jsonl").write_text('{"text": "one"}\n{"te')
    assert str(tmp_path / "corpora" / "embedded-a.train.jsonl") in sentence("embedded-a", "train")
