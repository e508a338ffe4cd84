"""Keeping a pruned model: a Hugging Face folder, its zeros counted again from the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor

from harness.core.errors import UserError
from harness.core.files import LOCK, staged, write_atomically
from harness.core.pattern import PERMUTED, parse_pattern, satisfies
from harness.models.loading import as_published

if TYPE_CHECKING:
    from transformers import PreTrainedModel


MARK = "pruning.json"
"""In a folder that runs save to: the fingerprint of the run whose model lies there whole, or null; its files; see also
`orders_of`."""


def save_model(
    model: PreTrainedModel,
    tokenizer: Any,
    folder: Path,
    sites: Mapping[str, Mapping[str, Any]],
    fingerprint: str,
    orders: Mapping[str, Tensor] | None = None,
) -> None:
    """Write model and tokenizer, read the pruned matrices back and count their zeros; then put them in their places.

    The configuration is the checkpoint's own. What an earlier run saved in the folder goes, even where this one writes
    nothing of that name.

    Args:
        orders: the inputs (I,) of a matrix in the order in which its pattern holds, where that is not their own; they
            are kept in `MARK`, since the weights lie in the inputs' own order.

    Raises:
        UserError: the folder cannot be written.
    """
    mark = folder / MARK
    try:
        earlier = _written(folder)
        with staged(folder) as stage:
            with as_published(model):
                model.save_pretrained(stage)
            tokenizer.save_pretrained(stage)
            _count_again(stage, sites, orders or {})
            new = {path.name for path in stage.iterdir() if path.name != LOCK}
            _write_mark(mark, None, earlier | new)  # from here on the folder holds neither model whole
        for name in earlier - new:
            _remove(folder / name)
        _write_mark(mark, fingerprint, new, orders or {})
    except AssertionError:
        raise
    except Exception as error:  # each library has its own for a full disk
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"save={folder} cannot be written: {reason}.") from error


def _write_mark(
    mark: Path, fingerprint: str | None, files: set[str], orders: Mapping[str, Tensor] | None = None
) -> None:
    told: dict[str, Any] = {"fingerprint": fingerprint, "files": sorted(files)}
    if orders:
        told["orders"] = {site: order.tolist() for site, order in orders.items()}
    write_atomically(mark, json.dumps(told) + "\n")


def _read_mark(folder: Path) -> Mapping[str, Any]:
    try:
        mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return mark if isinstance(mark, dict) else {}


def _written(folder: Path) -> set[str]:
    """Names of the files and folders that earlier runs wrote there; those of before they said so hold weights only."""
    said = _read_mark(folder).get("files")
    names = said if isinstance(said, list) else [path.name for path in folder.glob("*.safetensors*")]
    return {name for name in map(str, names) if name == Path(name).name and name[:1] not in ("", ".") and name != MARK}


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def orders_of(folder: Path) -> dict[str, Tensor]:
    """Of every matrix of a saved model whose N:M pattern holds in another order: its inputs (I,) in that order.

    Column `order[k]` of the weight is the k-th of the order, so `weight[:, order]` has the pattern in adjacent columns.

    Raises:
        UserError: the folder holds no model that a run saved.
    """
    try:
        orders = json.loads((folder / MARK).read_text(encoding="utf-8")).get("orders", {})
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
    return _read_mark(folder).get("fingerprint") == fingerprint and any(folder.glob("*.safetensors"))


def check_targets(targets: Sequence[tuple[Path, Path]]) -> None:
    """Refuse folders that a save would spoil.

    Args:
        targets: (folder to save to, folder of the dense model) of every point that saves.

    Raises:
        UserError: a point would overwrite its own source or what no run saved, or two points each other.
    """
    for target, source in targets:
        try:
            is_source = target.resolve() == source.resolve()
            is_strange = not (target / MARK).exists() and any(path.name[:1] != "." for path in target.glob("*"))
        except (OSError, RuntimeError) as error:  # a name too long; a link to itself
            why = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"save={target} cannot be written: {why}; choose another folder.") from error
        if is_source:
            raise UserError(f"save={target} is the folder of the dense model; choose another.")
        if is_strange:
            raise UserError(f"save={target} holds files that no run saved there; choose an empty folder.")
    if len({target.resolve() for target, _ in targets}) < len(targets):
        raise UserError(
            "several points would save to one folder; give each its own, for example save='out/${method.name}'."
        )
