"""A measure against an axis of numbers: a line per method or per value of another axis; losses against epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from math import log2
from typing import Any

import pandas as pd

from harness.record.dense import dense_rows
from harness.report.layout import axis_text, column_of, is_number
from harness.report.style import (
    Drawing,
    Style,
    dense_line,
    is_wide,
    legend,
    plot,
    series,
    shown,
    styles,
    told_apart,
    unit_of,
)


def lines(plt: Drawing, data: pd.DataFrame, metric: str, x: str, by: str, panels: str = "task") -> Any:
    """A panel per model and task: the measure against the axis `x`, a line per value of the axis `by`.

    Cells without a value on `x` are the same everywhere on it: dense grey, other methods as further dashed lines. With
    `panels=method` a panel per model and method instead, of the first task, unstructured sparsity alone.
    """
    if panels == "method":
        return _by_method(plt, data, metric, x, by)
    by = column_of(by)
    data = shown(data if by in data else data.assign(**{by: ""}), metric)
    on_axis = ~dense_rows(data) & data[x].map(is_number)
    needed = data[on_axis]["method"].nunique() > 1 or (data[on_axis][by] == "").any()
    several = ["method"] if needed else []
    keys = list(dict.fromkeys([by, *several, *told_apart(data[on_axis], but=(column_of(x), by))]))
    looks = styles(data[on_axis], by, keys[1:])
    models, tasks = list(dict.fromkeys(data["model"])), list(dict.fromkeys(data["task"]))
    size = (3.4 * len(tasks) + 1, 2.5 * len(models) + 0.8)
    figure, axes = plt.subplots(len(models), len(tasks), figsize=size, squeeze=False, layout="constrained")
    for model, row in zip(models, axes, strict=True):
        for task, axis in zip(tasks, row, strict=True):
            mine = (data["model"] == model) & (data["task"] == task)
            dense_line(axis, data[mine])
            _references(axis, data[mine & ~on_axis & ~dense_rows(data)], own_colour=by == "method")
            _panel(axis, data[mine & on_axis], x, keys, looks)
            axis.set_title(f"{model}: {task}", fontsize=8)
            _scale_y(axis, data[mine]["shown"])
    axes[-1][0].set_xlabel(x)
    axes[0][0].set_ylabel(unit_of(metric))
    legend(figure, axes)
    return figure


def _by_method(plt: Drawing, data: pd.DataFrame, metric: str, x: str, by: str) -> Any:
    task = data["task"].iloc[0]
    data = shown(data[(data["task"] == task) & ~data["pattern"].str.contains("of")], metric)
    pruned = ~dense_rows(data)
    looks = styles(data[pruned], by)
    models, methods = list(dict.fromkeys(data["model"])), list(dict.fromkeys(data[pruned]["method"]))
    size = (2.8 * len(methods) + 1, 2.5 * len(models) + 0.8)
    figure, axes = plt.subplots(len(models), len(methods), figsize=size, squeeze=False, layout="constrained")
    for model, row in zip(models, axes, strict=True):
        for method, axis in zip(methods, row, strict=True):
            mine = data[data["model"] == model]
            dense_line(axis, mine)
            _panel(axis, mine[mine["method"] == method], x, [by], looks)
            axis.set_title(f"{model}: {method}", fontsize=8)
            _scale_y(axis, mine[dense_rows(mine) | (mine["method"] == method)]["shown"])
    axes[-1][0].set_xlabel(x)
    axes[0][0].set_ylabel(f"{task} {unit_of(metric)}")
    legend(figure, axes)
    return figure


def losses(plt: Drawing, data: pd.DataFrame) -> Any:
    """A panel per model: the training loss of a block after each epoch, the first being the inner method's alone."""
    data = shown(data, "loss").assign(epoch=data["task"].str.removeprefix("epoch ").astype(int))
    several = ["method"] if data["method"].nunique() > 1 else []
    keys = ["level", *several, *told_apart(data, but=("level",))]
    models = list(dict.fromkeys(data["model"]))
    size = (4.2 * len(models) + 1, 3.6)
    figure, (row,) = plt.subplots(1, len(models), figsize=size, squeeze=False, layout="constrained")
    for model, axis in zip(models, row, strict=True):
        mine = data[data["model"] == model]
        _panel(axis, mine, "epoch", keys, styles(data, "level", keys[1:]))
        axis.set_title(f"{model}: {mine['protocol'].iloc[0]}", fontsize=8)
        _scale_y(axis, mine["shown"])
    row[0].set_xlabel("epoch (the first is the inner method alone)")
    row[0].set_ylabel(unit_of("loss"))
    legend(figure, row)
    return figure


def _panel(axis: Any, here: pd.DataFrame, x: str, keys: Sequence[str], looks: Mapping[tuple[Any, ...], Style]) -> None:
    for style, cells in series(here, keys, looks):
        plot(axis, x, cells, style)
    values = sorted(set(here[x]))
    if all(value > 0 and log2(value).is_integer() for value in values) and is_wide(values, 2):
        axis.set_xscale("log", base=2)
    elif is_wide(values, 50):
        axis.set_xscale("log")
    axis.set_xticks(values, [axis_text(value) for value in values])
    axis.xaxis.minorticks_off()
    axis.grid(alpha=0.3, linewidth=0.4)


def _references(axis: Any, cells: pd.DataFrame, own_colour: bool) -> None:
    """Methods that the axis does not concern; in black where the colours stand for something else than methods."""
    keys = told_apart(cells, but=("method",))
    looks = styles(cells, "method", keys)
    for dash, (style, found) in zip(cycle(("--", "-.", ":")), series(cells, ["method", *keys], looks), strict=False):
        colour = style.colour if own_colour else "black"
        for value in found["shown"]:
            axis.axhline(value, color=colour, linestyle=dash, linewidth=1.2, label=style.label)


def _scale_y(axis: Any, values: pd.Series) -> None:
    """Logarithmic where the values differ by much."""
    if is_wide(values, 5):
        axis.set_yscale("log")
    axis.tick_params(labelsize=7, which="both")
