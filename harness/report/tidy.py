"""Records as one tidy table: a row per measure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from harness.core.pattern import read_n_of_m
from harness.record.dense import BESIDE, KINDS, changes, is_dense, is_pruned, names_of
from harness.record.schema import Record
from harness.report.derived import derived
from harness.report.layout import is_number
from harness.report.presentation import BASELINE

SIZES = ("macs", "kv_bytes", "disk_bytes")
"""What a record counts of a model beside its parameters: see `Record`."""
COLUMNS = [
    *("study", "scale", "model", "method", "variant", "allocator", "scope", "sparsity", "pattern", "seed"),
    *("task", "metric", "value", "stderr", "protocol", "samples", "status", "reason", "fingerprint"),
    *("achieved", "asked", "parameters", "of_dense", *SIZES),
]
AXES = ("model", "method", "allocator", "scope", "sparsity", "seed")
"""Axes with a column among `COLUMNS`; every other axis of a study becomes a column of its own name."""

UNUSED = ("method", "allocator", "inputs")
"""Options that a model ignores which no method prunes: its cells have no value on such an axis."""
UNUSED_BY_DENSE = (*UNUSED, "calibration")
"""Those that a dense model ignores."""


class Cell(NamedTuple):
    """A point of a study as a report sees it: its axes, its record if there is one, its state and why."""

    axes: Mapping[str, Any]
    record: Record | None
    state: str
    why: str


def tidy(study: str, scale: str, cells: Sequence[Cell], layout: Mapping[str, Any]) -> pd.DataFrame:
    """One row per measure of every cell, those included that only follow from its record and that `layout` asks for.

    A cell without measures keeps one row that says why. Further axes of the study stand in columns after `COLUMNS`.
    """
    axes = beyond(cells)
    rows = [row for cell in cells for row in _rows(study, scale, cell, axes, layout)]
    frame = pd.DataFrame(rows, columns=[*COLUMNS, *axes])
    return frame.astype(
        dict.fromkeys(("value", "stderr", "achieved", "asked", "parameters", "of_dense", *SIZES), "float64")
    )


def beyond(cells: Sequence[Cell]) -> list[str]:
    """The axes of a study beyond `AXES`, and what changes a model beside its method, where anything does."""
    axes = list(dict.fromkeys(axis for cell in cells for axis in cell.axes if axis not in AXES))
    return axes + [kind for kind in BESIDE if kind not in axes and any(changes(_names(cell), kind) for cell in cells)]


def _names(cell: Cell) -> dict[str, str]:
    """Kind → name of what the point of a cell chooses; nothing where it is not said."""
    known = names_of(cell.record.config) if cell.record else {}
    return known | {kind: str(cell.axes[kind]) for kind in KINDS if kind in cell.axes}


def place(cell: Cell, axes: Iterable[str]) -> dict[str, Any]:
    """Where a cell stands, on these further axes too."""
    return {**{axis: _further(cell, axis) for axis in axes}, **_coordinates(cell)}


def _rows(study: str, scale: str, cell: Cell, axes: Sequence[str], layout: Mapping[str, Any]) -> list[dict[str, Any]]:
    record = cell.record
    head = {"study": study, "scale": scale, "status": cell.state, "reason": cell.why, **place(cell, axes)}
    measures = [*record.measures, *derived(record, layout)] if record else []
    if record is None or not measures:
        return [head]
    head["fingerprint"] = record.fingerprint
    head |= {key: record.sparsity.get(key) for key in ("achieved", "asked")}
    head |= {"parameters": record.parameters.get("model"), "of_dense": record.parameters.get("dense")}
    head |= {name: record.parameters.get(name) for name in SIZES}
    return [
        head | {key: measure[key] for key in ("task", "metric", "value", "stderr", "protocol", "samples")}
        for measure in measures
    ]


def _coordinates(cell: Cell) -> dict[str, Any]:
    """Where a cell stands; one that no method pruned has no sparsity, and dense ones belong to every scope."""
    config: Mapping[str, Any] = cell.record.config if cell.record else {}
    axes = cell.axes
    names = {"method": "", **_names(cell)}
    pruned, dense, even = is_pruned(names), is_dense(names), BASELINE["allocator"]
    sparsity, pattern = _sparsity(axes.get("sparsity", config.get("sparsity", 0.5))) if pruned else (0.0, "dense")
    return {
        "model": axes.get("model", config.get("model", {}).get("name")),
        "method": names["method"],
        "variant": axes.get("method.variant", config.get("method", {}).get("variant", "")),
        "allocator": axes.get("allocator", config.get("allocator", {}).get("name", even)) if pruned else even,
        "scope": "all" if dense else axes.get("scope", config.get("scope", "all")),
        "sparsity": sparsity,
        "pattern": pattern,
        "seed": axes.get("seed", config.get("seed", 0)),
    }


def _further(cell: Cell, axis: str) -> Any:
    """The value of a cell on an axis beyond `AXES`; nothing where the axis does not concern it."""
    kind, names = axis.partition(".")[0], {"method": "", **_names(cell)}
    if kind in BESIDE and not changes(names, kind):
        return ""
    if axis in BESIDE:
        return names[axis]
    unused = UNUSED_BY_DENSE if is_dense(names) else () if is_pruned(names) else UNUSED
    if axis not in cell.axes or kind in unused:
        return ""
    value = cell.axes[axis]
    if isinstance(value, Mapping):  # a nested component with its settings
        return str(value["name"])
    return value if isinstance(value, str) or is_number(value) else json.dumps(value)


def _sparsity(value: Any) -> tuple[float, str]:
    text = str(value)
    if found := read_n_of_m(text):
        keep, of = found
        return 1 - keep / of, text
    return float(text), "unstructured"
