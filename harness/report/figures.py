"""The figure of a study: SVG and PNG, and the numbers behind it as CSV."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from harness.report.bars import bars
from harness.report.curves import curves
from harness.report.layout import figure_of, is_number, level, metric_of
from harness.report.lines import lines, losses


def draw(compared: pd.DataFrame, layout: Mapping[str, Any], title: str, scale: str, folder: Path) -> None:
    """Write figure.svg, figure.png and figure.csv; where nothing is pruned (yet), the CSV alone."""
    wanted = figure_of(layout)
    metric = "loss" if wanted["kind"] == "losses" else metric_of(layout)
    data = compared[(compared["metric"] == metric) & compared["ours"].notna()]
    data.to_csv(folder / "figure.csv", index=False)
    pruned = data[data["method"] != "none"]
    if pruned.empty or (wanted["kind"] == "lines" and not any(map(is_number, pruned.get(wanted["x"], ())))):
        return
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "pruning-harness"  # equal records give equal files
    import matplotlib.pyplot as plt

    panels = _panels(plt, data.assign(level=[level(row) for row in data.itertuples()]), metric, wanted)
    width = int(panels.get_figwidth() * 12)  # characters that fit
    panels.suptitle(textwrap.fill(f"{title} · scale {scale}", width), fontsize=10)
    panels.canvas.draw()
    panels.set_layout_engine("none")  # laid out once, not again for each file
    panels.savefig(folder / "figure.svg", metadata={"Date": None})
    panels.savefig(folder / "figure.png", dpi=150, metadata={"Software": None})
    plt.close(panels)


def _panels(plt: Any, data: pd.DataFrame, metric: str, wanted: Mapping[str, Any]) -> Any:
    match wanted["kind"]:
        case "curves":
            return curves(plt, data, metric)
        case "lines":
            return lines(plt, data, metric, wanted["x"], wanted["lines"])
        case "losses":
            return losses(plt, data)
    return bars(plt, data, metric)
