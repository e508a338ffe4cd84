"""The figure of a ranking: profile and mean ranks above, the ratios to a baseline below."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from harness.report.layout import axis_text
from harness.report.profile import profile
from harness.report.ranking import Contest, against, group_columns
from harness.report.style import COLOURS, DASHES, MARKERS, Style, label, styles

FARTHEST = 10.0
"""The profile is drawn up to this factor at most; who is lower there is lower by a lot."""

PANELS = 5
"""So many panels of ratios stand beside each other."""

MOST = 2 * PANELS
"""Of more groups than these only the sparsities have panels."""


def draw(plt: Any, found: Contest, order: pd.DataFrame, baseline: Any = None) -> Any:
    """The figure; competitors have one order everywhere, the best mean rank first, and one look.

    Args:
        order: what `standings` gives.
        baseline: whom the panels below divide by; there are none without it.
    """
    looks = _looks(found, order)
    groups = _groups(found, baseline) if baseline else {}
    lines = math.ceil(len(groups) / PANELS)
    columns = math.ceil(len(groups) / lines) if lines else 1
    heights = [max(3.3, 0.19 * len(looks) + 0.8), lines * (0.19 * len(looks) + 0.7)]
    figure = plt.figure(figsize=(max(9.0, 2.2 * columns), sum(heights)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1)  # the longest name would touch the edge
    grid = figure.add_gridspec(2, 1, height_ratios=heights) if lines else figure.add_gridspec(1, 1)
    above = grid[0].subgridspec(1, 2, width_ratios=[3, 2])
    _profile(figure.add_subplot(above[0]), found, looks)
    _ranks(figure.add_subplot(above[1]), order.set_index(found.of), looks)
    if lines:
        _forests(figure, grid[1].subgridspec(lines, columns), groups, found.of, looks, baseline)
    return figure


def _forests(
    figure: Any, grid: Any, groups: Mapping[str, pd.DataFrame], of: str, looks: Mapping[Any, Style], baseline: Any
) -> None:
    """A panel for each group, all with the same names from top to bottom."""
    others = {name: look for name, look in looks.items() if name != baseline}
    for number, (title, rows) in enumerate(groups.items()):
        axis = figure.add_subplot(grid[number])
        _forest(axis, rows.set_index(of), others, named=number % grid.ncols == 0)
        axis.set_title(title, fontsize=8)
        if number + grid.ncols >= len(groups):
            axis.set_xlabel(f"× {baseline}", fontsize=8)


def _looks(found: Contest, order: pd.DataFrame) -> dict[Any, Style]:
    """The look of each competitor, in their order; whose colour comes a second time is dotted."""
    known = {key[0]: style for key, style in styles(found.rows, found.of).items()}
    again = {name: COLOURS.index(style.colour) != MARKERS.index(style.marker) for name, style in known.items()}
    return {name: known[name]._replace(dash=DASHES[int(again[name])]) for name in order[found.of]}


def _groups(found: Contest, baseline: Any) -> dict[str, pd.DataFrame]:
    """The ratios of each panel by its title: of every group, or of every sparsity where there are too many."""
    keys = group_columns(found)
    if len(found.rows.drop_duplicates(keys)) > MOST:
        keys = ["level"]
    ratios = against(found, baseline, keys)
    if not keys:
        return {"all cells": ratios}
    titles = [label(dict(zip(keys, row, strict=True))) for row in ratios[keys].itertuples(index=False)]
    return dict(iter(ratios.groupby([title.removeprefix("sparsity ") for title in titles], sort=False)))


def _profile(axis: Any, found: Contest, looks: Mapping[Any, Style]) -> None:
    steps = profile(found.losses)
    farthest = min(FARTHEST, max(steps["factor"].max(), 1.01))
    for place, (name, style) in enumerate(looks.items()):
        mine = steps[steps["competitor"] == name].set_index("factor")["share"]
        marks = [farthest ** ((third + (place + 0.5) / len(looks)) / 3) for third in range(3)]  # none above another
        x = sorted({1.0, farthest, *marks, *mine.index[mine.index <= farthest]})
        y = mine.reindex(x, method="ffill").fillna(0.0)
        look = {"color": style.colour, "linestyle": style.dash, "linewidth": 1.4, "label": axis_text(name)}
        look |= {"marker": style.marker, "markersize": 4, "markevery": [x.index(mark) for mark in marks]}
        axis.plot(x, y, drawstyle="steps-post", **look)
    axis.set_xscale("log")
    axis.set_xlim(1, farthest)
    axis.set_ylim(0, 1.02)
    ticks = [tick for tick in (1, 1.05, 1.1, 1.2, 1.5, 2, 3, 5, 10) if tick <= farthest]
    ticks = [tick for tick in ticks if farthest <= 2 or tick not in (1.05, 1.1)]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axis.minorticks_off()
    axis.set_xlabel("factor of the best in the cell", fontsize=8)
    axis.set_ylabel("share of cells within it", fontsize=8)
    look = {"fontsize": 7, "frameon": False, "borderaxespad": 0.2, "handlelength": 2.2, "columnspacing": 1.2}
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=min(5, len(looks)), **look)
    _plain(axis)


def _ranks(axis: Any, order: pd.DataFrame, looks: Mapping[Any, Style]) -> None:
    for place, (name, style) in enumerate(looks.items()):
        row = order.loc[name]
        _point(axis, place, row["rank"], row["low"], row["high"], style)
    _names(axis, looks, named=True)
    axis.set_xlabel(
        f"mean rank of {len(looks)}" + ("" if order["low"].isna().all() else ", 95 % over seeds"), fontsize=8
    )
    _plain(axis)


def _forest(axis: Any, rows: pd.DataFrame, looks: Mapping[Any, Style], *, named: bool) -> None:
    axis.axvline(1, color="0.5", linewidth=1, linestyle="--")
    axis.set_xscale("log")
    for place, (name, style) in enumerate(looks.items()):
        if name in rows.index and not math.isnan(rows.loc[name, "ratio"]):
            row = rows.loc[name]
            _point(axis, place, row["ratio"], row["low"], row["high"], style)
    _names(axis, looks, named=named)
    _ratio_ticks(axis, rows)
    _plain(axis)


def _point(axis: Any, place: int, value: float, low: float, high: float, style: Style) -> None:
    if not math.isnan(low):
        axis.plot([low, high], [place, place], color=style.colour, linestyle=style.dash, linewidth=1.4)
    axis.plot([value], [place], color=style.colour, marker=style.marker, markersize=5)


def _names(axis: Any, looks: Mapping[Any, Style], *, named: bool) -> None:
    axis.set_yticks(range(len(looks)), [axis_text(name) for name in looks])
    axis.set_ylim(len(looks) - 0.5, -0.5)
    axis.tick_params(axis="y", labelleft=named, length=0)


def _ratio_ticks(axis: Any, rows: pd.DataFrame) -> None:
    """Few ticks that stand apart whatever the range: 1, and the ends of what is shown, rounded.

    An interval that is far wider than the ratios lie apart runs out of the panel.
    """
    ratios = [1.0, *rows["ratio"].dropna()]
    least = max(min([*ratios, *rows["low"].dropna()]), min(ratios) / 3)
    most = min(max([*ratios, *rows["high"].dropna()]), max(ratios) * 3)
    width = math.log(most / least) or 0.1
    axis.set_xlim(least * math.exp(-0.08 * width), most * math.exp(0.08 * width))
    ticks = [tick for tick in (least, 1.0, most) if tick == 1 or abs(math.log(tick)) > 0.25 * width]
    axis.set_xticks(ticks, [f"{tick:.2g}" if tick < 10 else f"{tick:.0f}" for tick in ticks], minor=False)
    axis.minorticks_off()


def _plain(axis: Any) -> None:
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.3, linewidth=0.4)
    axis.set_axisbelow(True)
