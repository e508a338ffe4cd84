"""The figure of a study: SVG and PNG, and the numbers behind it as CSV."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]  # Okabe-Ito
MARKERS = "osD^vP*"
KNOWN = ("magnitude", "wanda", "sparsegpt", "sparsellm", "isc")
FEWEST_BARS = 6
"""A panel is at least so many bars wide."""


def draw(
    measured: pd.DataFrame, compared: pd.DataFrame, layout: Mapping[str, Any], title: str, scale: str, folder: Path
) -> None:
    """Write figure.svg, figure.png and figure.csv; a study without pruned cells gets the CSV alone."""
    metric = layout.get("metric") or "perplexity"
    data = compared[(compared["metric"] == metric) & compared["ours"].notna()]
    data.to_csv(folder / "figure.csv", index=False)
    if data[data["method"] != "none"].empty:
        return
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "pruning-harness"  # equal records give equal files
    import matplotlib.pyplot as plt

    panels = _curves(plt, data) if layout.get("figure") == "curves" else _bars(plt, data, metric)
    width = int(panels.get_figwidth() * 12)  # characters that fit
    panels.suptitle(textwrap.fill(f"{title} · scale {scale}", width), fontsize=10)
    panels.canvas.draw()
    panels.set_layout_engine("none")  # laid out once, not again for each file
    panels.savefig(folder / "figure.svg", metadata={"Date": None})
    panels.savefig(folder / "figure.png", dpi=150, metadata={"Software": None})
    plt.close(panels)


def _methods(data: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """A colour and a marker for each method, the same in every panel; those of `KNOWN` the same in every figure."""
    names = [name for name in dict.fromkeys(data["method"]) if name != "none"]
    order = [*KNOWN, *(name for name in names if name not in KNOWN)]
    places = {name: order.index(name) % len(COLOURS) for name in names}
    return {name: (COLOURS[place], MARKERS[place]) for name, place in places.items()}


def _curves(plt: Any, data: pd.DataFrame) -> Any:
    """Perplexity against sparsity: a panel per model and scope (rows) and task (columns), N:M as single points."""
    pruned = data[data["method"] != "none"]
    rows = list(dict.fromkeys(zip(pruned["model"], pruned["scope"], strict=True)))
    tasks = list(dict.fromkeys(data["task"]))
    figure, axes = plt.subplots(
        len(rows),
        len(tasks),
        figsize=(3.4 * len(tasks) + 1, 2.5 * len(rows) + 0.8),
        squeeze=False,
        layout="constrained",
    )
    for (model, scope), line in zip(rows, axes, strict=True):
        for task, axis in zip(tasks, line, strict=True):
            here = data[(data["model"] == model) & (data["task"] == task)]
            _curve_panel(axis, here, scope, _methods(data))
            axis.set_title(f"{model}, {scope.replace('_', ' ')}: {task}", fontsize=8)
    axes[-1][0].set_xlabel("sparsity (fraction of zeros)")
    axes[0][0].set_ylabel("perplexity")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8, frameon=False)
    return figure


def _curve_panel(axis: Any, here: pd.DataFrame, scope: str, methods: Mapping[str, tuple[str, str]]) -> None:
    for value in here[here["method"] == "none"]["ours"]:
        axis.axhline(value, color="0.5", linestyle="--", linewidth=1, label="dense")
    here = here[(here["scope"] == scope) & (here["method"] != "none")]
    for method, (colour, marker) in methods.items():
        mine = here[here["method"] == method]
        free = mine[mine["pattern"] == "unstructured"].sort_values("sparsity")
        fixed = mine[mine["pattern"] != "unstructured"]
        axis.plot(
            free["sparsity"], free["ours"], color=colour, marker=marker, markersize=4, linewidth=1.2, label=method
        )
        axis.plot(fixed["sparsity"], fixed["ours"], color=colour, marker=marker, markersize=6, linestyle="", mfc="none")
    for pattern, points in here[here["pattern"] != "unstructured"].groupby("pattern"):
        top = (points["sparsity"].iloc[0], points["ours"].max())
        axis.annotate(pattern, top, fontsize=6, xytext=(5, -2), textcoords="offset points")
    axis.set_yscale("log")
    axis.set_xticks(sorted(set(here["sparsity"])), [f"{value:g}" for value in sorted(set(here["sparsity"]))])
    axis.grid(alpha=0.3, linewidth=0.4)
    axis.tick_params(labelsize=7)


def _bars(plt: Any, data: pd.DataFrame, metric: str) -> Any:
    """One panel per model and task, or their mean; groups of bars per sparsity (and allocator), a bar per method."""
    models, tasks = list(dict.fromkeys(data["model"])), list(dict.fromkeys(data["task"]))
    tasks = [task for task in tasks if task.startswith("mean")] or tasks
    figure, axes = plt.subplots(
        len(models),
        len(tasks),
        figsize=(3.6 * len(tasks) + 1.2, 2.6 * len(models) + 0.8),
        squeeze=False,
        layout="constrained",
    )
    for model, line in zip(models, axes, strict=True):
        for task, axis in zip(tasks, line, strict=True):
            here = data[(data["model"] == model) & (data["task"] == task)]
            _bar_panel(axis, here, metric, _methods(data))
            axis.set_title(f"{model}: {task}", fontsize=8)
    axes[0][0].set_ylabel("perplexity" if metric == "perplexity" else f"{metric} (%)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8, frameon=False)
    return figure


def _bar_panel(axis: Any, here: pd.DataFrame, metric: str, methods: Mapping[str, tuple[str, str]]) -> None:
    factor = 1 if metric == "perplexity" else 100
    here = here.assign(shown=here["ours"] * factor, spread=here["sd"].astype(float) * factor)
    for value in here[here["method"] == "none"]["shown"]:
        axis.axhline(value, color="0.5", linestyle="--", linewidth=1, label="dense")
    pruned = here[here["method"] != "none"]
    groups = list(dict.fromkeys(zip(pruned["pattern"], pruned["sparsity"], pruned["allocator"], strict=True)))
    width = 0.8 / max(1, len(methods))
    for number, (method, (colour, _)) in enumerate(methods.items()):
        rows = pruned[pruned["method"] == method].itertuples()
        mine = {(r.pattern, r.sparsity, r.allocator): (r.shown, r.spread) for r in rows}
        heights, spreads = zip(*(mine.get(group, (math.nan, math.nan)) for group in groups), strict=True)
        places = [i + number * width for i in range(len(groups))]
        axis.bar(places, heights, width, yerr=spreads, error_kw={"linewidth": 1}, color=colour, label=method)
    single = len({group[2] for group in groups}) == 1
    names = [(g[0] if "of" in g[0] else f"{g[1]:.0%}") + ("" if single else f"\n{g[2]}") for g in groups]
    centre = width * (len(methods) - 1) / 2
    axis.set_xticks([i + centre for i in range(len(groups))], names, fontsize=7)
    empty = max(0.6, (FEWEST_BARS * width - len(groups)) / 2)  # a lone bar keeps the width of one among several
    axis.set_xlim(centre - empty, len(groups) - 1 + centre + empty)
    axis.tick_params(axis="y", labelsize=7)
    axis.set_axisbelow(True)
    axis.grid(axis="y", alpha=0.3, linewidth=0.4)
