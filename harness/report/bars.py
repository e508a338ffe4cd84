"""A bar per method, in groups."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from harness.report.style import Style, dense_line, is_wide, label, legend, series, shown, styles, told_apart, unit_of

FEWEST_BARS = 6
"""A panel is at least so many bars wide."""


def bars(plt: Any, data: pd.DataFrame, metric: str) -> Any:
    """One panel per model and task, or their mean; a group of bars per sparsity and whatever else varies.

    Seconds of all models stand in one panel, for there they are compared.
    """
    data = shown(data, metric)
    looks = styles(data[data["method"] != "none"], "method")
    models, tasks = list(dict.fromkeys(data["model"])), list(dict.fromkeys(data["task"]))
    tasks = [task for task in tasks if task.startswith("mean")] or tasks
    rows = [models] if metric == "seconds" else [[model] for model in models]
    size = (3.6 * len(tasks) * max(1, len(rows[0]) / 3) + 1.2, 2.6 * len(rows) + 0.8)
    figure, axes = plt.subplots(len(rows), len(tasks), figsize=size, squeeze=False, layout="constrained")
    for together, line in zip(rows, axes, strict=True):
        for task, axis in zip(tasks, line, strict=True):
            here = data[data["model"].isin(together) & (data["task"] == task)]
            dense_line(axis, here)
            _panel(axis, here[here["method"] != "none"], looks)
            axis.set_title(task if len(together) > 1 else f"{together[0]}: {task}", fontsize=8)
            if metric == "seconds" or is_wide(here["shown"], 20):  # methods differ by orders of magnitude
                axis.set_yscale("log")
    axes[0][0].set_ylabel(unit_of(metric))
    legend(figure, axes)
    return figure


def _panel(axis: Any, pruned: pd.DataFrame, looks: Mapping[tuple[Any, ...], Style]) -> None:
    several = [axis for axis in ("model", "allocator") if pruned[axis].nunique() > 1]
    keys = ["level", *several, *told_apart(pruned, but=("level", "allocator"))]
    groups = list(dict.fromkeys(pruned[keys].itertuples(index=False, name=None)))
    width = 0.8 / max(1, len(looks))
    for number, (style, cells) in enumerate(series(pruned, ["method"], looks)):
        values = zip(cells["shown"], cells["spread"], strict=True)
        mine = dict(zip(cells[keys].itertuples(index=False, name=None), values, strict=True))
        heights, spreads = zip(*(mine.get(group, (math.nan, math.nan)) for group in groups), strict=True)
        places = [i + number * width for i in range(len(groups))]
        axis.bar(places, heights, width, yerr=spreads, error_kw={"linewidth": 1}, color=style.colour, label=style.label)
    names = [_name(dict(zip(keys, group, strict=True))) for group in groups]
    centre = width * (len(looks) - 1) / 2
    axis.set_xticks([i + centre for i in range(len(groups))], names, fontsize=7)
    empty = max(0.6, (FEWEST_BARS * width - len(groups)) / 2)  # a lone bar keeps the width of one among several
    axis.set_xlim(centre - empty, len(groups) - 1 + centre + empty)
    axis.tick_params(axis="y", labelsize=7)
    axis.set_axisbelow(True)
    axis.grid(axis="y", alpha=0.3, linewidth=0.4)


def _name(group: dict[str, Any]) -> str:
    """A group's sparsity, and below it whatever else tells it from others."""
    level = group.pop("level")
    return "\n".join(filter(None, [level if "of" in level else f"{float(level):.0%}", label(group)]))
