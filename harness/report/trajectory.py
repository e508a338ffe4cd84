"""The best fitness of a search against the evaluations it took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from harness.report.style import Drawing, Style, is_wide, legend, series, styles

OF_A_SEED = {"linewidth": 0.8, "alpha": 0.35}
OF_ALL = {"linewidth": 2.0}


def trajectory(plt: Drawing, data: pd.DataFrame) -> Any:
    """A panel per model and objective (rows) and sparsity (columns); several seeds are thin lines, bold is their mean.

    Args:
        data: what `diagnostics.generations` made.
    """
    names = list(data.columns)
    keys = names[names.index("objective") + 1 : names.index("line")]
    looks = styles(data, keys[0], keys[1:])
    rows = list(dict.fromkeys(zip(data["model"], data["objective"], strict=True)))
    levels = list(dict.fromkeys(data["sparsity"]))
    size = (3.8 * len(levels) + 1, 2.7 * len(rows) + 0.8)
    figure, axes = plt.subplots(len(rows), len(levels), figsize=size, squeeze=False, layout="constrained")
    for (model, objective), line in zip(rows, axes, strict=True):
        for sparsity, axis in zip(levels, line, strict=True):
            here = data[(data["model"] == model) & (data["objective"] == objective) & (data["sparsity"] == sparsity)]
            axis.set_title(f"{model}, sparsity {sparsity}", fontsize=8)
            _panel(axis, here, keys, looks)
        line[0].set_ylabel(f"best fitness ({objective}, nats per token)", fontsize=8)
    axes[-1][0].set_xlabel("evaluations", fontsize=8)
    legend(figure, axes)
    return figure


def _panel(axis: Any, here: pd.DataFrame, keys: Sequence[str], looks: Mapping[tuple[Any, ...], Style]) -> None:
    for style, cells in series(here, keys, looks):
        look = {"color": style.colour, "linestyle": style.dash}
        if cells.empty:
            continue
        if cells["seed"].nunique() > 1:
            for _, mine in cells.groupby("seed"):
                axis.plot(mine["evaluations"], mine["best"], **look, **OF_A_SEED)
        mean = _mean(cells)
        axis.plot(mean["evaluations"], mean["best"], label=style.label, **look, **OF_ALL)
    if is_wide(here["best"].dropna(), 5):
        axis.set_yscale("log")
    axis.grid(alpha=0.3, linewidth=0.4)
    axis.tick_params(labelsize=7, which="both")


def _mean(cells: pd.DataFrame) -> pd.DataFrame:
    """The mean over seeds in every generation that all of them reached."""
    grouped = cells.groupby("generation")
    reached = grouped["seed"].nunique() == cells["seed"].nunique()
    return grouped[["evaluations", "best"]].mean()[reached]
