"""The tokenizer of a checkpoint: from files that are there, and with a vocabulary that the model has rows for."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness.models.checkpoint import Checkpoint, ModelChoice
from harness.models.weights import utf8_text
from harness.runtime.errors import UserError, reason
from harness.runtime.files import is_there

WHOLE = "tokenizer.json"
VOCABULARIES = (
    *(WHOLE, "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tekken.json"),
    *("vocab.bpe", "bpe.model", "sentencepiece.model"),
)
"""Files that hold a vocabulary, by the names under which families ship them."""
MERGES = "merges.txt"
SENTENCEPIECE = "sentencepiece"
"""The package that reads a `tokenizer.model`; without it, transformers asks for another one."""
NEEDED = ("vocab_file", "merges_file")
"""Entries of a tokenizer's own list of files without which it has no vocabulary; `tokenizer.json` stands for all."""


def load_tokenizer(checkpoint: Checkpoint, choice: ModelChoice, config: Any = None) -> Any:
    """The tokenizer as the checkpoint defines it.

    Args:
        config: the configuration as transformers read it; read again if there is none.

    Raises:
        UserError: a file of its vocabulary is missing, of which transformers would make an empty one; or it cannot be
            loaded.
    """
    from transformers import AutoTokenizer

    folder = checkpoint.folder
    if not choice.trust_remote_code and not any(is_there(folder / name) for name in VOCABULARIES):
        raise UserError(
            f"{folder} holds no vocabulary of a tokenizer (tokenizer.json, tokenizer.model, vocab.json, …); copy the "
            "tokenizer's files there."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, config=config, local_files_only=True, trust_remote_code=choice.trust_remote_code
        )
    except Exception as error:
        raise UserError(_why_none(choice.path, folder, error)) from error
    if not choice.trust_remote_code and (lacking := _lacking(tokenizer, folder)):
        raise UserError(
            f"{folder} lacks {lacking}, the vocabulary of its {type(tokenizer).__name__} (or {WHOLE}); copy the "
            "tokenizer's files there."
        )
    if getattr(tokenizer, "vocab_size", None) == 0:
        raise UserError(f"the vocabulary of the tokenizer in {folder} is empty; copy its files there again.")
    return tokenizer


def _why_none(path: str, folder: Path, error: Exception) -> str:
    """The user's remedy, where transformers says something else.

    Raises:
        UserError: one of the files is not in plain UTF-8.
    """
    for name in sorted(path.name for path in folder.glob("*.json")):
        utf8_text(folder / name)
    there = {name for name in (*VOCABULARIES, MERGES) if is_there(folder / name)}
    if there == {"vocab.json"}:
        return f"{folder} lacks {MERGES}, without which its vocab.json is no tokenizer; copy it there, or {WHOLE}."
    if there == {"tokenizer.model"} and find_spec(SENTENCEPIECE) is None:
        return f"{folder} has its vocabulary in tokenizer.model: pip install {SENTENCEPIECE}, or copy {WHOLE} there."
    return f"{path} has no tokenizer that can be loaded ({reason(error)})."


def _lacking(tokenizer: Any, folder: Path) -> str | None:
    """The first file that this kind of tokenizer takes its vocabulary from and that is not there."""
    files = {**type(tokenizer).vocab_files_names}
    if is_there(folder / WHOLE):
        return None
    if set(files) <= {"tokenizer_file"} or files.get("vocab_file") == "tokenizer.model":
        return None if is_there(folder / "tokenizer.model") or set(files) <= {"tokenizer_file"} else "tokenizer.model"
    return next((files[key] for key in NEEDED if key in files and not is_there(folder / files[key])), None)
