"""A bar per method, in groups."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from harness.record.dense import dense_rows
from harness.report.style import (
    Drawing,
    Style,
    dense_line,
    is_wide,
    label,
    legend,
    series,
    shown,
    styles,
    told_apart,
    unit_of,
)

FEWEST_BARS = 6
"""A panel is at least so many bars wide."""


MOST_STANDING = 10
"""Of more groups than these the names would run into each other: bars lie then, a name to the left of each group."""


def bars(plt: Drawing, data: pd.DataFrame, metric: str) -> Any:
    """One panel per model and task, or their mean; a group of bars per sparsity and whatever else varies.

    Seconds of all models stand in one panel, for there they are compared.
    """
    data = shown(data, metric)
    looks = styles(data[~dense_rows(data)], "method")
    models, tasks = list(dict.fromkeys(data["model"])), list(dict.fromkeys(data["task"]))
    tasks = [task for task in tasks if task.startswith("mean")] or tasks
    rows = [models] if metric == "seconds" else [[model] for model in models]
    panels = [[data[data["model"].isin(together) & (data["task"] == task)] for task in tasks] for together in rows]
    most = max(len(_groups(here[~dense_rows(here)])[1]) for line in panels for here in line)
    lying = most > MOST_STANDING
    size = (3.6 * len(tasks) * max(1, len(rows[0]) / 3) + 1.2, 2.6 * len(rows) + 0.8)
    if lying:
        size = (3.6 * len(tasks) + 1.8, (0.18 * most + 0.7) * len(rows) + 0.8)
    figure, axes = plt.subplots(len(rows), len(tasks), figsize=size, squeeze=False, layout="constrained")
    for together, frames, line in zip(rows, panels, axes, strict=True):
        for task, here, axis in zip(tasks, frames, line, strict=True):
            dense_line(axis, here, across=not lying)
            _panel(axis, here[~dense_rows(here)], looks, lying=lying)
            axis.set_title(task if len(together) > 1 else f"{together[0]}: {task}", fontsize=8)
            if metric == "seconds" or is_wide(here["shown"], 20):  # methods differ by orders of magnitude
                (axis.set_xscale if lying else axis.set_yscale)("log")
    if lying:
        figure.get_layout_engine().set(w_pad=0.15)  # the longest name would touch the edge
        axes[-1][0].set_xlabel(unit_of(metric))
    else:
        axes[0][0].set_ylabel(unit_of(metric))
    legend(figure, axes)
    return figure


def _groups(pruned: pd.DataFrame) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Axes that tell groups of bars apart, and their values for each group."""
    several = [axis for axis in ("model", "allocator") if pruned[axis].nunique() > 1]
    keys = ["level", *several, *told_apart(pruned, but=("level", "allocator"))]
    return keys, list(dict.fromkeys(pruned[keys].itertuples(index=False, name=None)))


def _panel(axis: Any, pruned: pd.DataFrame, looks: Mapping[tuple[Any, ...], Style], *, lying: bool) -> None:
    keys, groups = _groups(pruned)
    if not groups:  # only the dense model has a value here
        return
    if lying:
        levels = list(dict.fromkeys(group[0] for group in groups))
        groups.sort(key=lambda group: levels.index(group[0]))
    width = 0.8 / max(1, len(looks))
    for number, (style, cells) in enumerate(series(pruned, ["method"], looks)):
        values = zip(cells["shown"], cells["spread"], strict=True)
        mine = dict(zip(cells[keys].itertuples(index=False, name=None), values, strict=True))
        lengths, spreads = zip(*(mine.get(group, (math.nan, math.nan)) for group in groups), strict=True)
        places = [i + number * width for i in range(len(groups))]
        draw, error = (axis.barh, "xerr") if lying else (axis.bar, "yerr")
        look = {"error_kw": {"linewidth": 1}, "color": style.colour, "label": style.label}
        draw(places, lengths, width, **{error: spreads}, **look)
    names = [_name(dict(zip(keys, group, strict=True)), ", " if lying else "\n") for group in groups]
    centre = width * (len(looks) - 1) / 2
    set_ticks, set_limits = (axis.set_yticks, axis.set_ylim) if lying else (axis.set_xticks, axis.set_xlim)
    set_ticks([i + centre for i in range(len(groups))], names, fontsize=7)
    empty = max(0.6, (FEWEST_BARS * width - len(groups)) / 2)  # a lone bar keeps the width of one among several
    ends = (centre - empty, len(groups) - 1 + centre + empty)
    set_limits(*(reversed(ends) if lying else ends))
    measured = "x" if lying else "y"
    axis.tick_params(axis=measured, labelsize=7)
    axis.set_axisbelow(True)
    axis.grid(axis=measured, alpha=0.3, linewidth=0.4)


def _name(group: dict[str, Any], between: str) -> str:
    """A group's sparsity, and behind it whatever else tells it from others."""
    level = group.pop("level")
    return between.join(filter(None, [level if "of" in level else f"{float(level):.0%}", label(group)]))
