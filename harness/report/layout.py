"""How a study's `table:` is read: what is shown, in which rows and columns, and the figure beside it.

    metric: perplexity       or acc, acc_norm; `seconds` is the time of pruning, `loss` the training loss of a block,
                             `fitness` the best of a search, `spearman` how well sensitivities rank losses
    mean: true               the mean over the tasks too
    parameters: true         a column with the parameters of the model; it is there, too, where a model was cut
    macs: true               multiplications for 64 tokens; `kv_bytes: true`: bytes of the cache for each token;
                             `disk_bytes: true`: bytes of the weights as they are stored
    block: last              whose loss: a block by number, or the last one that has any
    rows: [model, sparsity]  axes of the study (`method.alpha` too), `variant` and `task`
    columns: task            one of the same
    figure: bars             or curves (against sparsity; `{kind: curves, panels: allocator}` has rows of panels by
                             another axis), losses (against the epoch; `{kind: losses, block: 3}`), or
                             `{kind: lines, x: calibration.windows, lines: method}`: against an axis, a line per value,
                             `{kind: trajectory, lines: allocator.start}`: the fitness of a search as it goes, a line
                             per value of one axis or of several (`[allocator.start, allocator.objective]`),
                             or scatter: the loss of pruning one unit alone against its sensitivity
    ranking: {of: method, over: [model, sparsity, seed, task], against: sparsegpt}
                             the values of one axis ranked over cells that all of them have, a cell for each combination
                             of the axes of `over`; `against` is the one that the others are divided by. `among: […]`
                             ranks some of them only

An axis that a cell does not have (`method.alpha` of a dense model) is empty for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

from harness.record.dense import NONE

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("bars", "curves", "lines", "losses", "trajectory", "scatter")
"""The figures there are."""


def heading(title: str, scale: str) -> str:
    """The title of a table or figure; records of several scales, or of none, name no scale."""
    return f"{title} · scale {scale}" if scale else title


def metric_of(layout: Mapping[str, Any]) -> str:
    """The metric that the table shows."""
    return str(layout.get("metric") or "perplexity")


def figure_of(layout: Mapping[str, Any]) -> dict[str, Any]:
    """The figure as a mapping with its `kind`."""
    figure = layout.get("figure") or "bars"
    return {"kind": "bars", **figure} if isinstance(figure, Mapping) else {"kind": figure}


def losses_of(layout: Mapping[str, Any]) -> str | None:
    """The block whose training loss is shown, or `last`; None where no loss is."""
    figure = figure_of(layout)
    if metric_of(layout) != "loss" and figure["kind"] != "losses":
        return None
    return str(figure.get("block", layout.get("block", "last")))


def named_axes(layout: Mapping[str, Any]) -> list[str]:
    """Every axis that the table, the figure or the ranking names."""
    figure = figure_of(layout)
    axes = [axis for key in ("x", "lines") if key in figure for axis in listed(figure[key])]
    if ranking := layout.get("ranking"):
        axes += [ranking["of"], *ranking["over"]]
    return [*layout["rows"], layout.get("columns", "task"), *axes]


def listed(axes: str | Iterable[str]) -> list[str]:
    """One axis or several, as a list."""
    return [axes] if isinstance(axes, str) else list(axes)


def column_of(axis: str) -> str:
    """The column in which an axis is found: `level` shows a sparsity, and every cell has a variant."""
    return {"sparsity": "level", "method.variant": "variant"}.get(axis, axis)


def varying(frame: pd.DataFrame, axes: Iterable[str]) -> list[str]:
    """Those of the axes on which a model pruned by one method has several values, so that they are to be told apart."""
    return [axis for axis in axes if (frame.groupby(["model", "method"])[axis].nunique() > 1).any()]


def is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def axis_text(value: Any) -> str:
    """A value of an axis as it is shown."""
    return f"{value:g}" if is_number(value) else str(value)


def level(row: Any) -> str:
    """The sparsity of a row as it is shown: a fraction, or `NofM`; 0 for a dense model."""
    return "0" if row.method == NONE else row.pattern if "of" in row.pattern else f"{row.sparsity:g}"
