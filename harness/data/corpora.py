"""The texts: where each is found, how it is known to be the right one, and how its rows are joined.

Local files come first and are accepted only with the sha256 known for them; then the Hugging Face hub.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

from torch import Tensor

from harness.runtime.errors import UserError, unknown
from harness.runtime.files import at_home
from harness.runtime.hub import asking, why_nothing

EMBEDDED = Path(__file__).parent.parent / "embedded" / "assets"
Sampling = Literal["documents", "stream"]
HELD_JOIN = "\n\n"
"""Between the documents of a text in memory where perplexity joins them, as WikiText-2's protocol does."""


@dataclass(frozen=True)
class Local:
    """A file below `HARNESS_ASSETS/data`, or of the package, with the sha256 of its uncompressed bytes."""

    path: str
    sha256: str | None
    embedded: bool = False


@dataclass(frozen=True)
class Hub:
    """A dataset of the hub: one file of raw JSON lines, or a configuration whose rows hold the text in `column`."""

    repository: str
    file: str | None = None
    configuration: str | None = None
    split: str | None = None
    revision: str | None = None
    column: str = "text"


@dataclass(frozen=True)
class Split:
    """One split: where it is found (local first), how the file's bytes become rows, what joins the rows."""

    local: Local | None
    hub: Hub | None
    rows: Callable[[bytes], list[str]]
    join: str


@dataclass(frozen=True)
class Corpus:
    """A named text. `sampling`: calibration windows come from single documents, or from the joined text."""

    name: str
    sampling: Sampling
    splits: dict[str, Split] = field(default_factory=dict)


@dataclass(frozen=True)
class Text:
    """A split in memory: its rows, what joins them and identifies it; or, without rows, windows (N, L) of tokens."""

    rows: tuple[str, ...]
    join: str
    sha256: str
    source: str
    revision: str | None
    windows: Tensor | None = None


def _json_lines(data: bytes) -> list[str]:
    return [json.loads(line)["text"] for line in data.decode().split("\n") if line]


def _wikitext(data: bytes) -> list[str]:
    """The rows as the hub has them: a blank line is an empty row, any other keeps its line feed."""
    lines = data.decode().split("\n")
    return ["" if not line.strip() else line + "\n" for line in (lines[:-1] if not lines[-1] else lines)]


def _penn(data: bytes) -> list[str]:
    return [line.strip() for line in data.decode().split("\n") if line.strip()]


def _embedded(name: str) -> Corpus:
    def split(part: str) -> Split:
        return Split(Local(f"corpora/{name}.{part}.jsonl", None, embedded=True), None, _json_lines, " ")

    return Corpus(name, "documents", {"train": split("train"), "test": split("test")})


_WIKITEXT = "Salesforce/wikitext"
_PENN = "ptb-text-only/ptb_text_only"
_PENN_PARQUET = "refs/convert/parquet"  # the repository itself is a loading script, which datasets >= 4 does not run
_C4_REVISION = (
    "607bd4c8450a42878aa9ddc051a65a055450ef87"  # the one EvoPress pins (IST-DASLab/EvoPress, src/datautils.py)
)

CORPORA = {
    corpus.name: corpus
    for corpus in (
        Corpus(
            "wikitext2",
            "stream",
            {
                "train": Split(None, Hub(_WIKITEXT, None, "wikitext-2-raw-v1", "train"), _wikitext, " "),
                "test": Split(
                    Local(
                        "wikitext2/wiki.test.raw", "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08"
                    ),
                    Hub(_WIKITEXT, None, "wikitext-2-raw-v1", "test"),
                    _wikitext,
                    "\n\n",
                ),
                "validation": Split(None, Hub(_WIKITEXT, None, "wikitext-2-raw-v1", "validation"), _wikitext, "\n\n"),
            },
        ),
        Corpus(
            "wikitext2-sample",
            "stream",
            {
                "train": Split(
                    Local(
                        "wikitext2/wiki.train.first1MB.raw",
                        "a0f6c5cc154a9798978b7e97305275666e7caeed0f1a778076d8d335dedfc251",
                    ),
                    None,
                    _wikitext,
                    " ",
                )
            },
        ),
        Corpus(
            "ptb",
            "stream",
            {
                "train": Split(
                    Local("ptb/ptb.train.txt.gz", "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf"),
                    Hub(_PENN, None, "penn_treebank", "train", _PENN_PARQUET, "sentence"),
                    _penn,
                    " ",
                ),
                "test": Split(
                    Local("ptb/ptb.test.txt", "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0"),
                    Hub(_PENN, None, "penn_treebank", "test", _PENN_PARQUET, "sentence"),
                    _penn,
                    " ",
                ),
                "validation": Split(
                    Local("ptb/ptb.valid.txt", "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2"),
                    Hub(_PENN, None, "penn_treebank", "validation", _PENN_PARQUET, "sentence"),
                    _penn,
                    " ",
                ),
            },
        ),
        Corpus(
            "c4",
            "documents",
            {
                "train": Split(
                    None,
                    Hub("allenai/c4", "en/c4-train.00000-of-01024.json.gz", revision=_C4_REVISION),
                    _json_lines,
                    " ",
                ),
                "validation": Split(
                    None,
                    Hub("allenai/c4", "en/c4-validation.00000-of-00008.json.gz", revision=_C4_REVISION),
                    _json_lines,
                    " ",
                ),
            },
        ),
        Corpus(
            "c4-sample",
            "documents",
            {
                "train": Split(
                    Local(
                        "c4/c4-train.00000-of-01024.first1000.jsonl.gz",
                        "cdd5b754119131d2934e3e799a059a9d64f53a6aac9e7e2ef79b43120bb01a32",
                    ),
                    None,
                    _json_lines,
                    " ",
                ),
                "validation": Split(
                    Local(
                        "c4/c4-validation.subset2000.jsonl.gz",
                        "118ef726b71172521feff878ce0e91f9d2da2d7772d47eb7e90391997da09cb4",
                    ),
                    None,
                    _json_lines,
                    " ",
                ),
            },
        ),
        _embedded("embedded-a"),
        _embedded("embedded-b"),
        _embedded("embedded-c"),
    )
}


def assets() -> Path | None:
    """The folder of local models and texts, set by `HARNESS_ASSETS`."""
    folder = os.environ.get("HARNESS_ASSETS")
    return at_home(folder) if folder else None


_held: dict[str, Text] = {}
"""Texts that a caller has in memory, by the names that they have meanwhile."""


@contextmanager
def held(name: str, content: Sequence[str] | Tensor) -> Iterator[str]:
    """While inside, documents, or token windows (N, L), that a caller has in memory are a corpus.

    Yields:
        The name of the corpus, `<name>-<the beginning of the sha256 of its content>`.
    """
    windows = content if isinstance(content, Tensor) else None
    rows = () if isinstance(content, Tensor) else tuple(content)
    data = "\0".join(rows).encode() if windows is None else json.dumps(windows.tolist()).encode()
    digest = hashlib.sha256(data).hexdigest()
    corpus = f"{name}-{digest[:8]}"
    _held[corpus] = Text(rows, HELD_JOIN, digest, "memory", None, windows)
    try:
        yield corpus
    finally:
        _held.pop(corpus, None)


def corpus_named(name: str) -> Corpus:
    """The corpus of a name.

    Raises:
        UserError: unknown name.
    """
    if name in _held:
        return Corpus(name, "documents", dict.fromkeys(("train", "test"), Split(None, None, _json_lines, HELD_JOIN)))
    if name not in CORPORA:
        raise unknown("corpus", name, CORPORA)
    return CORPORA[name]


@lru_cache(maxsize=16)
def read_text(name: str, split: str) -> Text:
    """A split of a corpus, local file first, then the hub.

    Raises:
        UserError: no such split, the local file is not the one known, or neither file nor hub is there.
    """
    corpus = corpus_named(name)
    if split not in corpus.splits:
        raise unknown(f"split of corpus '{name}':", split, corpus.splits)
    if name in _held:
        return _held[name]
    part = corpus.splits[split]
    if part.local and (path := local_file(part.local)):
        data, digest = read_known(name, part.local, path)
        try:
            rows = tuple(part.rows(data))
        except (ValueError, KeyError) as error:
            raise UserError(f"the file {path} is not what '{name}' should be: {error}.") from error
        return Text(rows, part.join, digest, part.local.path, None)
    if part.hub:
        return _read_hub(name, split, part, part.hub)
    raise UserError(
        f"the corpus '{name}' ({split}) is a local file only: "
        f"set HARNESS_ASSETS to the folder that holds data/{part.local.path if part.local else ''}."
    )


def local_file(local: Local) -> Path | None:
    """Where a file is, if it is there: in the package, or below `HARNESS_ASSETS/data`."""
    folder = EMBEDDED if local.embedded else (assets() or Path()) / "data"
    path = folder / local.path
    return path if (local.embedded or assets()) and path.is_file() else None


def read_known(name: str, local: Local, path: Path) -> tuple[bytes, str]:
    """The uncompressed bytes of the file of a corpus or task, and their sha256.

    Raises:
        UserError: the file cannot be read, or is not the one known.
    """
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"the file {path} of '{name}' cannot be read: {error}.") from error
    digest = hashlib.sha256(data).hexdigest()
    if local.sha256 not in (None, digest):
        raise UserError(
            f"the file {path} is not the one known as '{name}': its sha256 is {digest[:12]}…, "
            f"{str(local.sha256)[:12]}… is expected; fetch it again or remove it."
        )
    return data, digest


def _read_hub(name: str, split: str, part: Split, hub: Hub) -> Text:
    use = f"calibration={name}" if split == "train" else f"'evaluation=[{name}]'"
    try:
        rows, revision = _hub_file_rows(name, part, hub) if hub.file else _hub_dataset_rows(name, hub)
    except Exception as error:
        raise UserError(
            f"the corpus '{name}' is neither below HARNESS_ASSETS nor to be had from the hub ({why_nothing(error)}); "
            f"on a machine with a network run: python -m harness prefetch {use}"
        ) from error
    digest = hashlib.sha256("\0".join(rows).encode()).hexdigest()
    return Text(tuple(rows), part.join, digest, f"{hub.repository}:{hub.file or hub.configuration}", revision)


def _hub_file_rows(name: str, part: Split, hub: Hub) -> tuple[list[str], str | None]:
    from huggingface_hub import hf_hub_download

    assert hub.file
    with asking(f"the corpus {name} ({hub.repository})"):
        path = Path(hf_hub_download(hub.repository, hub.file, repo_type="dataset", revision=hub.revision))
    # …/snapshots/<revision>/<file>: the folder's name is the revision that was resolved
    revision = path.parts[path.parts.index("snapshots") + 1] if "snapshots" in path.parts else None
    return part.rows(gzip.decompress(path.read_bytes())), revision


def _hub_dataset_rows(name: str, hub: Hub) -> tuple[list[str], str | None]:
    import datasets
    from huggingface_hub import dataset_info

    with asking(f"the corpus {name} ({hub.repository})"):
        rows = datasets.load_dataset(hub.repository, hub.configuration, split=hub.split, revision=hub.revision)
        try:
            revision = dataset_info(hub.repository, revision=hub.revision).sha
        except Exception:  # offline with a warm cache: the rows are there, their revision is not told
            revision = hub.revision
    return list(rows[hub.column]), revision
