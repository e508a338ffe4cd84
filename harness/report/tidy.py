"""Records as one tidy table: a row per measure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from harness.record.schema import Record

COLUMNS = [
    *("study", "scale", "model", "method", "variant", "allocator", "scope", "sparsity", "pattern", "seed"),
    *("task", "metric", "value", "stderr", "protocol", "samples", "status", "reason", "fingerprint"),
]
NOT_ASKED = ("records", "save", "force", "tracker", "study", "scale", "plugins", "device")
"""Options that say where and how, not what: two records that differ in them alone answer the same question."""


class Cell(NamedTuple):
    """A point of a study as a report sees it: its axes, its record if there is one, its state and why."""

    axes: Mapping[str, Any]
    record: Record | None
    state: str
    why: str


def config_key(config: Mapping[str, Any]) -> str:
    """What a configuration asks for, as a string that is equal for equal questions."""
    asked = {key: value for key, value in config.items() if key not in NOT_ASKED}
    model = config["model"]
    asked["model"] = [model["name"], model["path"] if model["name"] == "hf" else None, model["window"]]
    if config["method"]["name"] == "none":
        for key in ("sparsity", "allocator", "calibration", "seed"):
            asked.pop(key)
    return json.dumps(asked, sort_keys=True)


def tidy(study: str, scale: str, cells: Sequence[Cell]) -> pd.DataFrame:
    """One row per measure of every cell; a cell without measures keeps one row that says why."""
    rows = [row for cell in cells for row in _rows(study, scale, cell)]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    return frame.astype({"value": "float64", "stderr": "float64"})


def _rows(study: str, scale: str, cell: Cell) -> list[dict[str, Any]]:
    record = cell.record
    head = {"study": study, "scale": scale, "status": cell.state, "reason": cell.why, **_coordinates(cell)}
    if record is None or not record.measures:
        return [head]
    head["fingerprint"] = record.fingerprint
    return [
        head | {key: measure[key] for key in ("task", "metric", "value", "stderr", "protocol", "samples")}
        for measure in record.measures
    ]


def _coordinates(cell: Cell) -> dict[str, Any]:
    """Where a cell stands; dense cells have no sparsity and belong to every scope."""
    config: Mapping[str, Any] = cell.record.config if cell.record else {}
    axes = cell.axes
    method = str(axes.get("method", config.get("method", {}).get("name", "")))
    dense = method == "none"
    sparsity, pattern = (0.0, "dense") if dense else _sparsity(axes.get("sparsity", config.get("sparsity", 0.5)))
    return {
        "model": axes.get("model", config.get("model", {}).get("name")),
        "method": method,
        "variant": config.get("method", {}).get("variant", ""),
        "allocator": "uniform" if dense else axes.get("allocator", config.get("allocator", {}).get("name", "uniform")),
        "scope": "all" if dense else axes.get("scope", config.get("scope", "all")),
        "sparsity": sparsity,
        "pattern": pattern,
        "seed": axes.get("seed", config.get("seed", 0)),
    }


def _sparsity(value: Any) -> tuple[float, str]:
    text = str(value)
    if "of" in text:
        keep, of = map(int, text.split("of"))
        return 1 - keep / of, text
    return float(text), "unstructured"
