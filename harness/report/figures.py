"""The figure of a study: SVG and PNG, and the numbers behind it as CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from harness.record.dense import dense_rows
from harness.report.bars import bars
from harness.report.curves import curves
from harness.report.diagnostics import generations, units
from harness.report.files import write_csv
from harness.report.layout import figure_of, heading, is_number, level, listed, metric_of
from harness.report.lines import lines, losses
from harness.report.scatter import scatter
from harness.report.style import Drawing, named, save
from harness.report.tidy import Cell
from harness.report.trajectory import trajectory


def draw(
    compared: pd.DataFrame, layout: Mapping[str, Any], title: str, scale: str, folder: Path, cells: Sequence[Cell] = ()
) -> None:
    """Write figure.svg, figure.png and figure.csv; where nothing is pruned (yet), the CSV alone.

    Args:
        cells: what `compared` was made of; some figures show more of a record than its measures.
    """
    wanted = figure_of(layout)
    metric = "loss" if wanted["kind"] == "losses" else metric_of(layout)
    data = _data(compared, cells, metric, wanted)
    write_csv(data, folder / "figure.csv")
    pruned = data if wanted["kind"] in ("trajectory", "scatter") else data[~dense_rows(data)]
    if pruned.empty or (wanted["kind"] == "lines" and not any(map(is_number, pruned.get(wanted["x"], ())))):
        return
    save(_panels(Drawing(), named(data), metric, wanted), heading(title, scale), folder, "figure")


def _data(compared: pd.DataFrame, cells: Sequence[Cell], metric: str, wanted: Mapping[str, Any]) -> pd.DataFrame:
    match wanted["kind"]:
        case "trajectory":
            return generations(cells, listed(wanted.get("lines", "allocator")))
        case "scatter":
            return units(cells)
    return compared[(compared["metric"] == metric) & compared["ours"].notna()]


def _panels(plt: Drawing, data: pd.DataFrame, metric: str, wanted: Mapping[str, Any]) -> Any:
    match wanted["kind"]:
        case "trajectory":
            return trajectory(plt, data)
        case "scatter":
            return scatter(plt, data)
    data = data.assign(level=[level(row) for row in data.itertuples()])
    match wanted["kind"]:
        case "curves":
            return curves(plt, data, metric, listed(wanted.get("panels", ())))
        case "lines":
            return lines(plt, data, metric, wanted["x"], wanted["lines"], wanted.get("panels", "task"))
        case "losses":
            return losses(plt, data)
    return bars(plt, data, metric)
