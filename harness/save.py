"""Keeping a pruned model: a Hugging Face folder, its zeros counted again from the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from harness.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def save_model(model: PreTrainedModel, tokenizer: Any, folder: Path, sites: Mapping[str, Mapping[str, Any]]) -> None:
    """Write model and tokenizer, read the pruned matrices back and count their zeros.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except OSError as error:
        raise UserError(f"save={folder} cannot be written: {error.strerror}.") from error
    saved = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for site in sites:
                if f"{site}.weight" in file.keys():  # noqa: SIM118 (not a dict)
                    saved[site] = int((file.get_tensor(f"{site}.weight") == 0).sum())
    for site, facts in sites.items():
        assert saved[site] == round(facts["achieved"] * facts["parameters"]), (
            f"{site} changed its zeros on the way to disk"
        )


def is_saved(folder: Path) -> bool:
    """Whether a model lies in the folder."""
    return any(folder.glob("*.safetensors"))
