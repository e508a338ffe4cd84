"""Keeping a pruned model: a Hugging Face folder, its zeros counted again from the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from harness.config import Form
from harness.core.pattern import PERMUTED, parse_pattern, satisfies
from harness.models.decoder import Decoder
from harness.models.loading import as_published
from harness.models.placement import placement_of
from harness.models.sliced import slice_config
from harness.models.written import check_numbers, check_plain, count, plain
from harness.runtime.errors import Refusal, UserError
from harness.runtime.files import LOCK, staged, write_atomically
from harness.save.card import CARD, card

MARK = "pruning.json"
"""In a folder that runs save to: the fingerprint of the run whose model lies there whole, or null; its files; what was
done to the model, by matrix; see also `orders_of`."""


def check_form(decoder: Decoder, form: Form) -> None:
    """Find out before the work whether what is left of a model can be written in a form.

    Raises:
        Refusal: it cannot.
    """
    check_numbers(decoder)
    if form == "padded" and decoder.cut:
        check_plain(decoder)


def save_model(
    decoder: Decoder, tokenizer: Any, folder: Path, sites: Mapping[str, Mapping[str, Any]], fingerprint: str,
    orders: Mapping[str, Tensor] | None = None, *, form: Form = "padded", about: Mapping[str, Any] | None = None,
) -> int:  # fmt: skip
    """Write model and tokenizer, read the pruned matrices back and count their zeros; then put them in their places.

    The configuration is the checkpoint's own, as far as nothing was cut. What an earlier run saved in the folder goes,
    even where this one writes nothing of that name.

    Args:
        orders: the inputs (I,) of a matrix in the order in which its pattern holds, where that is not their own; they
            are kept in `MARK`, since the weights lie in the inputs' own order.
        form: how a model is written whose blocks differ in width or lack a part: as a plain one, with zeros in between,
            or in its true widths, which only the harness reads.
        about: what else `MARK` and the model card say of the run.

    Returns:
        The parameters that lie in the folder, zeros in between among them.

    Raises:
        UserError: the folder cannot be written.
        Refusal: the model cannot be written in this form.
    """
    mark, told = folder / MARK, {**(about or {}), **_facts(decoder, sites, form)}
    try:
        earlier = _written(folder)
        with staged(folder) as stage:
            size = _write(decoder, stage, form)
            told["parameters"] = size
            tokenizer.save_pretrained(stage)
            _count_again(stage, decoder, sites, orders or {})
            if CARD in earlier or not (folder / CARD).exists():  # else it is a user's own
                (stage / CARD).write_text(card(told), encoding="utf-8")
            new = {path.name for path in stage.iterdir() if path.name != LOCK}
            _write_mark(mark, None, earlier | new)  # from here on the folder holds neither model whole
        for name in earlier - new:
            _remove(folder / name)
        _write_mark(mark, fingerprint, new, told, orders or {})
    except (AssertionError, Refusal):
        raise
    except Exception as error:  # each library has its own for a full disk
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"save={folder} cannot be written: {reason}.") from error
    return size


def _facts(decoder: Decoder, sites: Mapping[str, Mapping[str, Any]], form: Form) -> dict[str, Any]:
    """Facts of the model itself in `MARK`."""
    facts: dict[str, Any] = {"sites": {site: dict(one) for site, one in sites.items()}}
    if decoder.cut:
        facts |= {"cut": decoder.cut.json(), "form": form}
    return facts


def _write(decoder: Decoder, stage: Path, form: Form) -> int:
    """Write the model's configuration and weights; gives the number of parameters that lie there."""
    model = decoder.model
    check_numbers(decoder)
    if form == "sliced" and decoder.cut:
        with as_published(model):
            model.save_pretrained(stage)
        slice_config(decoder, stage / "config.json")
    elif decoder.cut or decoder.anatomy.conv1d:
        placement_of(decoder).settle()
        with as_published(model):  # the plain model takes a copy of the configuration
            written = plain(decoder)
        written.save_pretrained(stage)
        return count(written)
    else:
        with as_published(model):
            model.save_pretrained(stage)
    return count(model)


def _write_mark(
    mark: Path,
    fingerprint: str | None,
    files: set[str],
    about: Mapping[str, Any] | None = None,
    orders: Mapping[str, Tensor] | None = None,
) -> None:
    told: dict[str, Any] = {**(about or {}), "fingerprint": fingerprint, "files": sorted(files)}
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


def _count_again(
    folder: Path, decoder: Decoder, sites: Mapping[str, Mapping[str, Any]], orders: Mapping[str, Tensor]
) -> None:
    """Compare the weights of the file that are not zero with those that were counted in memory.

    Blocks have the numbers in the file that they have in the model that is left.
    """
    names = {
        f"{site.replace(decoder.site(index), f'{decoder.anatomy.blocks}.{position}', 1)}.weight": site
        for position, index in enumerate(decoder.indices)
        for site in decoder.linears(index)
        if site in sites
    }
    saved = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in set(names) & set(file.keys()):
                site, weight = names[name], file.get_tensor(name)
                saved[site] = int((weight != 0).sum())
                pattern = sites[site]["pattern"]
                assert not pattern.endswith(PERMUTED) or satisfies(
                    weight, parse_pattern(pattern.removesuffix(PERMUTED)), _whole(orders[site], weight)
                ), f"{site} lost its pattern on the way to disk"
    for site, facts in sites.items():
        assert saved[site] == facts["parameters"] - round(facts["achieved"] * facts["parameters"]), (
            f"{site} changed its zeros on the way to disk"
        )


def _whole(order: Tensor, weight: Tensor) -> Tensor:
    """An order of inputs (I,) with those behind it that the file has beside them."""
    return torch.cat([order, torch.arange(len(order), weight.shape[1])])


def is_saved(folder: Path, fingerprint: str, form: Form = "padded") -> bool:
    """Return whether the model of this run lies in the folder, in this form where it has one."""
    mark = _read_mark(folder)
    return (
        mark.get("fingerprint") == fingerprint and mark.get("form", form) == form and any(folder.glob("*.safetensors"))
    )


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
