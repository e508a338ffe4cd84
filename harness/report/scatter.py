"""The loss of pruning one unit alone against its sensitivity: does the one foretell the other?"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

import pandas as pd

from harness.report.style import COLOURS, MARKERS, Drawing, is_wide, label, legend

UNITS = {"block": "blocks", "matrix": "matrices"}


def scatter(plt: Drawing, data: pd.DataFrame) -> Any:
    """A row of panels per model; a panel per kind of unit and whatever else tells verifications apart.

    Points are means over seeds, and so is the rank correlation in the title, which is that of the panel's units.

    Args:
        data: what `diagnostics.units` made.
    """
    names = list(data.columns)
    keys = names[names.index("kind") : names.index("seed")]
    models = list(dict.fromkeys(data["model"]))
    columns = list(dict.fromkeys(data[keys].itertuples(index=False, name=None)))
    matrices = list(dict.fromkeys(data.loc[data["kind"] == "matrix", "matrix"]))
    size = (3.6 * len(columns) + 1, 3.2 * len(models) + 0.8)
    figure, axes = plt.subplots(len(models), len(columns), figsize=size, squeeze=False, layout="constrained")
    for model, row in zip(models, axes, strict=True):
        for column, axis in zip(columns, row, strict=True):
            here = data[(data[["model", *keys]] == (model, *column)).all(axis=1)]
            axis.set_visible(not here.empty)
            if not here.empty:
                kind, *values = column
                told_apart = label(dict(zip(keys[1:], values, strict=True)))
                where = ", ".join(filter(None, [model, UNITS[kind], told_apart]))
                axis.set_title(f"{where}\nSpearman's ρ = {correlation(here):.2f}", fontsize=8)
                _panel(axis, here, {name: place for place, name in enumerate(matrices)})
        row[0].set_ylabel("loss with this unit alone pruned\n(nats per token)", fontsize=8)
    legend(figure, axes)
    return figure


def correlation(units: pd.DataFrame) -> float:
    """Spearman's rank correlation of sensitivity and loss, the mean over seeds."""
    return fmean(mine["sensitivity"].rank().corr(mine["loss"].rank()) for _, mine in units.groupby("seed"))


def _panel(axis: Any, here: pd.DataFrame, places: Mapping[str, int]) -> None:
    points = here.groupby(["unit", "block", "matrix"], sort=False, dropna=False)[["sensitivity", "loss"]].mean()
    for name, cells in points.groupby("matrix", sort=False):
        place = places.get(str(name), 0)
        turn = place // len(COLOURS)  # ten kinds are more than there are colours
        marker = MARKERS[(place + turn) % len(COLOURS)]  # of as many markers as colours: no two kinds look alike
        look = {"color": COLOURS[place % len(COLOURS)], "marker": marker}
        axis.plot(cells["sensitivity"], cells["loss"], linestyle="", markersize=4, label=name or None, **look)
    for (_, block, name), point in points.iterrows():
        if name == "":
            axis.annotate(str(block), tuple(point), fontsize=7, xytext=(3, 3), textcoords="offset points")
    axis.axhline(here["dense"].mean(), color="0.5", linestyle="--", linewidth=1, label="dense")
    if (points["sensitivity"] > 0).all():
        axis.set_xscale("log")
    else:  # an estimated trace may be negative
        axis.set_xscale("symlog", linthresh=points["sensitivity"].abs().median() or 1.0)
    if is_wide(points["loss"].dropna(), 5):
        axis.set_yscale("log")
    axis.margins(0.1)  # room for the numbers of blocks
    axis.set_xlabel(f"sensitivity ({here['measure'].iloc[0]})", fontsize=8)
    axis.grid(alpha=0.3, linewidth=0.4)
    axis.tick_params(labelsize=7, which="both")
