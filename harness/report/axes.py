"""The options of records as axes of a table: what each run was given, and in which options runs differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.record.dense import KINDS, is_dense, is_pruned
from harness.record.request import NOT_ASKED

ORDER = ("model", "scope", "sparsity", "method", "allocator", "planner", "conversion", "recovery", "calibration")
"""Axes stand in this order, whichever else behind them."""
ALWAYS = ("model", "method", "allocator", "scope", "sparsity", "seed")
"""Axes on which every run has its place, so that runs of two models are told apart whatever they are called."""
UNUSED = (*NOT_ASKED, "evaluation", "model.geometry", "model.path", "model.trust_remote_code", "calibration.seed")
"""Options that are no axis: where and how a run was made, what its measures say themselves, what follows another."""


def options_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run by their names on the command line; a group has the name of what was chosen."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= _flat(key, value)
    return {key: value for key, value in found.items() if not _is_unused(key)}


def _flat(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {key: value}
    inner = {name: one for part in value if part != "name" for name, one in _flat(f"{key}.{part}", value[part]).items()}
    return ({key: value["name"]} if "name" in value else {}) | inner


def _is_unused(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in UNUSED)


def differing(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The options in which runs differ, in the order of a table's columns.

    A setting (`method.blocksize`, `calibration.windows`) differs where it has several values for one model and one
    choice of its group: what merely comes with another choice is no option that was varied. A run has whatever value
    for what it does not use, so a dense one counts for the model and what changes models alone, and one that no method
    pruned not for what pruning asks.

    Args:
        runs: options of runs, as `options_of` gives them.
    """
    using = {
        "all": runs,
        "pruned": [options for options in runs if is_pruned(options)],
        "changed": [options for options in runs if not is_dense(options)] or runs,
    }
    names = dict.fromkeys(key for options in runs for key in options)
    return sorted((key for key in names if _differs(key, using[_used_by(key)])), key=place)


def _used_by(key: str) -> str:
    """The runs that use an option: all, those that a method pruned, or those of which anything was changed."""
    if key in ("model", *KINDS):
        return "all"
    return "pruned" if key.partition(".")[0] in ("sparsity", "allocator", "layer_error") else "changed"


def _differs(key: str, runs: Iterable[Mapping[str, Any]]) -> bool:
    group = key.rpartition(".")[0]
    values: dict[tuple[Any, ...], set[str]] = {}
    for options in runs:
        if key in options:
            comes_with = () if key in ORDER or key in ALWAYS else (options["model"], options.get(group))
            values.setdefault(comes_with, set()).add(repr(options[key]))
    return any(len(several) > 1 for several in values.values())


def place(axis: str) -> tuple[int, bool]:
    """Where an axis stands among the others: a choice (`calibration`) before its settings (`calibration.windows`)."""
    group = axis.partition(".")[0]
    return (ORDER.index(group) if group in ORDER else len(ORDER)), "." in axis
