"""Style of the figures: how a series of cells looks and is called, units, the legend, the files."""

from __future__ import annotations

import os
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from harness.record.dense import dense_rows
from harness.report.compare import further_axes
from harness.report.layout import axis_text, column_of, is_number, varying
from harness.report.presentation import LOOKS
from harness.runtime import escape

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#888888"]  # Okabe-Ito
GROWN = 6
"""How often a figure grows at most."""
MARKERS = "osD^vP*X<"
DASHES: Sequence[Any] = ("-", ":", "-.", (0, (6, 1, 1, 1, 1, 1)))
NAMED = ("model", "method", "variant", "method.inner", "allocator", "scope")
"""Axes whose values need no name beside them in a legend."""
UNITS = {"loss": "training loss", "fitness": "best fitness (nats per token)", "spearman": "Spearman's ρ"}


class Drawing:
    """matplotlib for files: no display, no pyplot, no style of the user's; equal numbers give equal files."""

    def __init__(self) -> None:
        backend = os.environ.pop("MPLBACKEND", None)  # a notebook's, by which the import alone may fail
        try:
            import matplotlib
        finally:
            if backend is not None:
                os.environ["MPLBACKEND"] = backend
        matplotlib.rcdefaults()
        matplotlib.rcParams["svg.hashsalt"] = "pruning-harness"
        matplotlib.rcParams["axes.titley"] = 1.0  # no ticks stand above a panel: its title's place is known

    def subplots(self, rows: int, columns: int, *, figsize: Any, layout: str, **how: Any) -> Any:
        """A figure and its panels, as `pyplot.subplots` gives them."""
        figure = self.figure(figsize=figsize, layout=layout)
        return figure, figure.subplots(rows, columns, **how)

    def figure(self, *, figsize: Any, layout: str) -> Any:
        """A figure without panels."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=figsize, layout=layout)  # type: ignore[arg-type]
        FigureCanvasAgg(figure)
        return figure


def named(data: pd.DataFrame) -> pd.DataFrame:
    """The same data with every text as matplotlib is to draw it."""
    texts = [name for name in data.columns if not pd.api.types.is_numeric_dtype(data[name])]
    return data.assign(**{name: [_drawn(value) for value in data[name]] for name in texts})


def _drawn(value: Any) -> Any:
    return escape.figure(value) if isinstance(value, str) else value


def save(figure: Any, title: str, folder: Path, name: str) -> None:
    """Write the figure under its title as SVG and PNG."""
    width = int(figure.get_figwidth() * 12)  # characters that fit
    figure.suptitle(textwrap.fill(escape.figure(title), width), fontsize=10)
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if not axis.get_label_text():
                axis.set_label_coords(0, 0)  # or a place is found for it in every drawing
    _lay_out(figure)
    figure.set_layout_engine(None)  # laid out once, not again for each file, for which one would be drawn in vain too
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    figure.savefig(folder / f"{name}.png", dpi=150, metadata={"Software": None})


def _lay_out(figure: Any) -> None:
    """Place what is in a figure, which grows until there is room beside its legend and names for the panels."""
    for attempt in range(GROWN + 1):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            figure.get_layout_engine().execute(figure)
        if not any("layout not applied" in str(one.message) for one in said):
            return
        if attempt < GROWN:
            figure.set_size_inches(1.15 * figure.get_figwidth(), 1.4 * figure.get_figheight())


class Style(NamedTuple):
    """How a series is drawn."""

    label: str | None
    colour: str
    marker: str
    dash: Any


def told_apart(data: pd.DataFrame, but: Sequence[str]) -> list[str]:
    """The axes besides `but` on which a model pruned by one method has several values."""
    axes = dict.fromkeys(["variant", "allocator", "scope", "level", *map(column_of, further_axes(data))])
    return varying(data, [axis for axis in axes if axis not in but])


def styles(data: pd.DataFrame, axis: str, others: Sequence[str] = ()) -> dict[tuple[Any, ...], Style]:
    """A style for each combination of values there is, the same in every panel.

    Colour and marker follow `axis` (those of `LOOKS` look the same in every figure), dashes follow the `others`.
    """
    rows = dict.fromkeys(data[[axis, *others]].itertuples(index=False, name=None))
    found = sorted(rows, key=lambda row: [_order(value) for value in row])
    values = list(dict.fromkeys(row[0] for row in found))
    places = list(dict.fromkeys([*LOOKS.get(axis, ()), *values]))
    rests = list(dict.fromkeys(row[1:] for row in found))
    answer = {}
    for key in found:
        place, dash = places.index(key[0]), DASHES[rests.index(key[1:]) % len(DASHES)]
        text = label(dict(zip((axis, *others), key, strict=True)))
        answer[key] = Style(text, COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)], dash)
    return answer


def label(values: Mapping[str, Any]) -> str:
    """`sparsellm, alpha 0.1`; an axis that does not concern the series is left out."""
    parts = {"sparsity" if axis == "level" else axis: axis_text(value) for axis, value in values.items() if value != ""}
    return ", ".join(text if axis in NAMED else f"{axis.rpartition('.')[2]} {text}" for axis, text in parts.items())


def _order(value: Any) -> tuple[bool, float]:
    """Numbers ascending, the rest in the order it came in."""
    return not is_number(value), float(value) if is_number(value) else 0.0


def series(
    data: pd.DataFrame, axes: Sequence[str], looks: Mapping[tuple[Any, ...], Style]
) -> Iterator[tuple[Style, pd.DataFrame]]:
    """The cells of each style."""
    cells = dict(iter(data.groupby(list(axes), sort=False)))
    for key, style in looks.items():
        yield style, cells.get(key, data.iloc[:0])


def shown(data: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The data with `shown` and `spread`: value and standard deviation over seeds, accuracies in percent."""
    factor = 100 if metric.startswith("acc") else 1
    return data.assign(shown=data["ours"] * factor, spread=data["sd"].astype(float) * factor)


def unit_of(metric: str) -> str:
    """The unit beside the axis of a metric."""
    return f"{metric} (%)" if metric.startswith("acc") else UNITS.get(metric, metric)


def plot(axis: Any, x: str, cells: pd.DataFrame, style: Style, **more: Any) -> None:
    """A line through cells that `shown` made, with error bars where there are several seeds."""
    look = {"color": style.colour, "marker": style.marker, "linestyle": style.dash, "label": style.label}
    look |= {"markersize": 4, "linewidth": 1.2} | more
    cells = cells.sort_values(x)
    if cells["spread"].isna().all():
        axis.plot(cells[x], cells["shown"], **look)
    else:
        axis.errorbar(cells[x], cells["shown"], cells["spread"], capsize=2, **look)


def dense_line(axis: Any, here: pd.DataFrame, *, across: bool = True) -> None:
    """The dense model as a grey dashed line, across or from top to bottom."""
    for value in here[dense_rows(here)]["shown"]:
        (axis.axhline if across else axis.axvline)(value, color="0.5", linestyle="--", linewidth=1, label="dense")


def is_wide(values: Iterable[float], ratio: float) -> bool:
    """Return whether values differ so much that a logarithmic axis tells more."""
    known = [float(value) for value in values]
    return bool(known) and min(known) > 0 and max(known) > ratio * min(known)


def legend(figure: Any, axes: Any) -> None:
    """One legend below all panels, with every series that any of them has."""
    found: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, text in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(text, handle)
    if not found:
        return
    width = 0.6 + 0.06 * max(map(len, found))  # inches that an entry takes
    columns = max(1, min(len(found), int(figure.get_figwidth() / width)))
    figure.legend(found.values(), found, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
