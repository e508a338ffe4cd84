"""A measure against sparsity, a curve per method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from harness.record.dense import dense_rows
from harness.report.layout import column_of
from harness.report.style import Drawing, Style, dense_line, legend, plot, series, shown, styles, told_apart, unit_of


def curves(plt: Drawing, data: pd.DataFrame, metric: str, panels: Sequence[str] = ()) -> Any:
    """A panel per model and scope (rows) and task (columns), N:M as single points.

    Args:
        panels: further axes whose values have rows of their own, for fewer series in each.
    """
    data = shown(data, metric)
    pruned = data[~dense_rows(data)]
    split = ["model", "scope", *map(column_of, panels)]
    rows = list(dict.fromkeys(pruned[split].itertuples(index=False, name=None)))
    if panels:
        models = list(dict.fromkeys(pruned["model"]))
        rows.sort(key=lambda row: models.index(row[0]))
    tasks = list(dict.fromkeys(data["task"]))
    others = told_apart(pruned, but=("level", *split[1:]))
    looks = styles(pruned, "method", others)
    size = (3.4 * len(tasks) + 1, 2.5 * len(rows) + 0.8)
    figure, axes = plt.subplots(len(rows), len(tasks), figsize=size, squeeze=False, layout="constrained")
    for (model, scope, *further), line in zip(rows, axes, strict=True):
        for task, axis in zip(tasks, line, strict=True):
            here = data[(data["model"] == model) & (data["task"] == task)]
            dense_line(axis, here)
            here = here[~dense_rows(here)]
            for column, value in zip(split[1:], (scope, *further), strict=True):
                here = here[here[column] == value]
            _panel(axis, here, ["method", *others], looks)
            axis.set_title(f"{', '.join(map(str, (model, scope.replace('_', ' '), *further)))}: {task}", fontsize=8)
    axes[-1][0].set_xlabel("sparsity (fraction of zeros)")
    axes[0][0].set_ylabel(unit_of(metric))
    legend(figure, axes)
    return figure


def _panel(axis: Any, here: pd.DataFrame, keys: Sequence[str], looks: Mapping[tuple[Any, ...], Style]) -> None:
    here = here[list(dict.fromkeys([*keys, "sparsity", "pattern", "shown", "spread"]))]
    for style, cells in series(here, keys, looks):
        plot(axis, "sparsity", cells[cells["pattern"] == "unstructured"], style)
        fixed = cells[cells["pattern"] != "unstructured"]
        plot(axis, "sparsity", fixed, style._replace(dash="", label=None), markersize=6, mfc="none")
    for pattern, points in here[here["pattern"] != "unstructured"].groupby("pattern"):
        top = (points["sparsity"].iloc[0], points["shown"].max())
        axis.annotate(pattern, top, fontsize=6, xytext=(5, -2), textcoords="offset points")
    axis.set_yscale("log")
    axis.set_xticks(sorted(set(here["sparsity"])), [f"{value:g}" for value in sorted(set(here["sparsity"]))])
    axis.grid(alpha=0.3, linewidth=0.4)
    axis.tick_params(labelsize=7, which="both")
