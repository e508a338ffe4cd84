"""Records as one tidy table: a row per measure."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import pandas as pd

from harness.record.schema import Record

COLUMNS = [
    *("study", "scale", "model", "method", "variant", "allocator", "scope", "sparsity", "pattern", "seed"),
    *("task", "metric", "value", "stderr", "protocol", "samples", "status", "reason", "fingerprint"),
]
WANDA_SEVEN = {"boolq", "rte", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa"}
"""The tasks behind the mean that Wanda prints (arXiv 2306.11695, table 2)."""

NOT_ASKED = ("records", "save", "force", "tracker", "study", "scale", "plugins")
"""Options that say where and how, not what: two records that differ in them alone answer the same question."""


class Cell(NamedTuple):
    """A point of a study as a report sees it: its axes, its record if there is one, its state and why."""

    axes: Mapping[str, Any]
    record: Record | None
    state: str
    why: str


def question(config: Mapping[str, Any]) -> str:
    """What a configuration asks for, as a string that is equal for equal questions."""
    asked = {key: value for key, value in config.items() if key not in NOT_ASKED}
    model = config["model"]
    asked["model"] = [model["name"], model["path"], model["window"]]
    asked["device"] = str(config["device"]).partition(":")[0]
    asked["evaluation"] = {
        name: {key: value for key, value in settings.items() if value is not None}
        for name, settings in (config.get("evaluation") or {}).items()
    }
    dense = config["method"]["name"] == "none"
    untouched = dense and config["planner"]["name"] == config["recovery"]["name"] == "none"
    ignored = (*(("sparsity", "allocator") if dense else ()), *(("calibration", "seed") if untouched else ()))
    return json.dumps({key: value for key, value in asked.items() if key not in ignored}, sort_keys=True)


def answered(record: Record) -> set[str]:
    """Every question that a record answers.

    Its configuration has nothing open; a question that leaves an option open asks for the default, which was the
    record's if its value is the default of its model and machine. One that leaves the device open takes any.
    """
    defaults = record.provenance.get("defaults", {})
    configs = [dict(record.config), dict(record.config) | {"device": "auto"}]
    for key, default, left_open in (
        ("evaluation_window", defaults.get("window"), None),
        ("dtype", defaults.get("dtype"), "auto"),
        ("calibration.length", defaults.get("window"), None),
        ("calibration.seed", record.config["seed"], None),
    ):
        group, _, leaf = key.rpartition(".")
        value = (record.config[group] if group else record.config)[leaf]
        if value == default:
            configs += [
                config | ({group: {**config[group], leaf: left_open}} if group else {leaf: left_open})
                for config in configs
            ]
    return {question(config) for config in configs}


def tidy(study: str, scale: str, cells: Sequence[Cell], mean_of: str | None = None) -> pd.DataFrame:
    """One row per measure of every cell, and one of the mean over its tasks in the metric `mean_of`, if that is given.

    A cell without measures keeps one row that says why.
    """
    rows = [row for cell in cells for row in _rows(study, scale, cell, mean_of)]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    return frame.astype({"value": "float64", "stderr": "float64"})


def mean_name(tasks: Iterable[str]) -> str:
    """What the mean over these tasks is called: `mean7` is that of Wanda's seven, for which numbers are reported."""
    known = set(tasks)
    return "mean7" if known == WANDA_SEVEN else f"mean of {len(known)}"


def _rows(study: str, scale: str, cell: Cell, mean_of: str | None) -> list[dict[str, Any]]:
    record = cell.record
    head = {"study": study, "scale": scale, "status": cell.state, "reason": cell.why, **_coordinates(cell)}
    if record is None or not record.measures:
        return [head]
    head["fingerprint"] = record.fingerprint
    measures = [*record.measures, *_mean([m for m in record.measures if m["metric"] == mean_of])]
    return [
        head | {key: measure[key] for key in ("task", "metric", "value", "stderr", "protocol", "samples")}
        for measure in measures
    ]


def _mean(measures: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The unweighted mean of several accuracies as a measure of its own; its errors are taken as independent."""
    if len(measures) < 2 or any(measure["value"] is None for measure in measures):
        return []
    name = mean_name(measure["task"] for measure in measures)
    errors = [measure["stderr"] or 0.0 for measure in measures]
    mean = {
        "task": name,
        "value": fmean(measure["value"] for measure in measures),
        "stderr": math.hypot(*errors) / len(measures),
        "samples": None,
        "protocol": _mean_protocol(name, [measure["protocol"] for measure in measures]),
    }
    return [{**measures[0], **mean}]


def _mean_protocol(name: str, protocols: Sequence[str]) -> str:
    """`boolq@lm-eval-2.0,0-shot,no-bos#…` and its peers → `mean7@lm-eval-1.0+2.0,0-shot,no-bos#…`."""
    parts = [re.fullmatch(r"[^@]*@(lm-eval-)?([^,#]*)([^#]*)#.*", text) for text in protocols]
    versions = "+".join(sorted({part[2] for part in parts if part}))
    settings = "/".join(sorted({part[3] for part in parts if part}))
    digest = hashlib.sha256(" ".join(sorted(protocols)).encode()).hexdigest()[:8]
    return f"{name}@lm-eval-{versions}{settings}#{digest}"


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
