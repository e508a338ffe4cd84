"""Keeping a pruned model: a Hugging Face folder, its zeros counted again from the file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor

from harness.core.errors import UserError
from harness.core.files import staged, write_atomically
from harness.core.pattern import PERMUTED, parse_pattern, satisfies

if TYPE_CHECKING:
    from transformers import PreTrainedModel


MARK = "pruning.json"
"""In a folder that runs save to: the fingerprint of the run whose model lies there whole, or null; see `orders_of`."""


def save_model(
    model: PreTrainedModel,
    tokenizer: Any,
    folder: Path,
    sites: Mapping[str, Mapping[str, Any]],
    fingerprint: str,
    orders: Mapping[str, Tensor] | None = None,
) -> None:
    """Write model and tokenizer, read the pruned matrices back and count their zeros; then put them in their places.

    Args:
        orders: the inputs (I,) of a matrix in the order in which its pattern holds, where that is not their own; they
            are kept in `MARK`, since the weights lie in the inputs' own order.

    Raises:
        UserError: the folder cannot be written.
    """
    mark = folder / MARK
    try:
        with staged(folder) as stage:
            model.save_pretrained(stage)
            tokenizer.save_pretrained(stage)
            _count_again(stage, sites, orders or {})
            new = {path.name for path in stage.iterdir()}
            _write_mark(mark, None)  # from here on the folder holds neither model whole
        for path in folder.glob("*.safetensors*"):
            if path.name not in new:  # of a model in more files
                path.unlink()
        _write_mark(mark, fingerprint, orders or {})
    except AssertionError:
        raise
    except Exception as error:  # each library has its own for a full disk
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"save={folder} cannot be written: {reason}.") from error


def _write_mark(mark: Path, fingerprint: str | None, orders: Mapping[str, Tensor] | None = None) -> None:
    told: dict[str, Any] = {"fingerprint": fingerprint}
    if orders:
        told["orders"] = {site: order.tolist() for site, order in orders.items()}
    write_atomically(mark, json.dumps(told) + "\n")


def orders_of(folder: Path) -> dict[str, Tensor]:
    """Of every matrix of a saved model whose N:M pattern holds in another order: its inputs (I,) in that order.

    Column `order[k]` of the weight is the k-th of the order, so `weight[:, order]` has the pattern in adjacent columns.

    Raises:
        UserError: the folder holds no model that a run saved.
    """
    try:
        orders = json.loads((folder / MARK).read_text()).get("orders", {})
        return {site: torch.tensor(order) for site, order in orders.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} holds no {MARK} of a run; save a model there with save={folder}.") from error


def _count_again(folder: Path, sites: Mapping[str, Mapping[str, Any]], orders: Mapping[str, Tensor]) -> None:
    saved = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for site in sites:
                if f"{site}.weight" in file.keys():  # noqa: SIM118 (not a dict)
                    weight = file.get_tensor(f"{site}.weight")
                    saved[site] = int((weight == 0).sum())
                    pattern = sites[site]["pattern"]
                    assert not pattern.endswith(PERMUTED) or satisfies(
                        weight, parse_pattern(pattern.removesuffix(PERMUTED)), orders[site]
                    ), f"{site} lost its pattern on the way to disk"
    for site, facts in sites.items():
        assert saved[site] == round(facts["achieved"] * facts["parameters"]), (
            f"{site} changed its zeros on the way to disk"
        )


def is_saved(folder: Path, fingerprint: str) -> bool:
    """Whether the model of this run lies in the folder."""
    try:
        mark = json.loads((folder / MARK).read_text())
    except (OSError, ValueError):
        return False
    known = isinstance(mark, dict) and mark.get("fingerprint") == fingerprint
    return known and any(folder.glob("*.safetensors"))


def check_targets(targets: Sequence[tuple[Path, Path]]) -> None:
    """Refuse folders that a save would spoil.

    Args:
        targets: (folder to save to, folder of the dense model) of every point that saves.

    Raises:
        UserError: a point would overwrite its own source or what no run saved, or two points each other.
    """
    for target, source in targets:
        if target.resolve() == source.resolve():
            raise UserError(f"save={target} is the folder of the dense model; choose another.")
        if not (target / MARK).exists() and any(not path.name.startswith(".") for path in target.glob("*")):
            raise UserError(f"save={target} holds files that no run saved there; choose an empty folder.")
    if len({target.resolve() for target, _ in targets}) < len(targets):
        raise UserError(
            "several points would save to one folder; give each its own, for example save='out/${method.name}'."
        )
