"""Tables and figures of any runs, without a study: the axes are the options in which they differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.record.schema import Record
from harness.report.axes import ALWAYS, differing, options_of, place
from harness.report.derived import FIRST_TASK
from harness.report.layout import KINDS, is_number
from harness.report.outputs import Subject
from harness.report.tidy import Cell
from harness.runtime.errors import UserError, unknown

FEWEST_ON_A_LINE = 3
"""Values that a numeric axis has to have before a line is drawn through them."""
IN_ORDER = ("perplexity", "acc", "acc_norm")
"""The metric that is shown if none is named: the first of these that is measured, or else whatever is."""


@dataclass(frozen=True)
class Wish:
    """The request for a table: its axes and metric; what is left open follows from the runs."""

    rows: tuple[str, ...] = ()
    """Axes that tell rows apart; further ones in which runs differ are added."""
    columns: str = ""
    """The axis whose values are columns; `task` if it is left open."""
    metric: str = ""
    figure: str = ""
    """A kind of `layout.KINDS`."""
    x: str = ""
    """The axis of numbers of a figure of lines."""


def cells_of(records: Iterable[Record], named: Iterable[str] = ()) -> list[Cell]:
    """A cell for each record, on every axis in which records differ and on those that are named.

    Of records with the same options (of other weights or an earlier revision, say) the last one counts. Cells are in
    the order of their records' names, whatever the order of the records.
    """
    records = list(records)
    runs = [options_of(record.config) for record in records]
    axes = list(dict.fromkeys([*ALWAYS, *differing(runs), *named]))
    last: dict[str, Cell] = {}
    for record, options in zip(records, runs, strict=True):
        here = {axis: options[axis] for axis in axes if axis in options}
        state = "done" if record.status == "ok" else record.status
        last[repr(here)] = Cell(here, record, state, record.reason)
    return sorted(last.values(), key=lambda cell: cell.record.name if cell.record else "")


def subject_of(cells: Sequence[Cell], wish: Wish, title: str) -> Subject:
    """How these cells are shown: the layout of their table, and the tasks in it.

    Raises:
        UserError: an axis that no run has, seeds as an axis, a metric that nothing is measured by, or a figure that
            does not fit.
    """
    runs = [options_of(cell.record.config) for cell in cells if cell.record]
    named = [*wish.rows, *filter(None, [wish.columns, wish.x])]
    check_axes(named, runs)
    differ = [axis for axis in differing(runs) if axis != "seed"]
    metric, tasks = _measured(cells, wish.metric)
    columns = wish.columns or "task"
    several = [*differ, *(["task"] if len(tasks) > 1 else [])]
    rows = [*wish.rows, *(axis for axis in several if axis not in (*wish.rows, columns))]
    layout = {
        "metric": metric,
        "rows": rows or ["model", "sparsity", "method"],
        "columns": columns,
        "figure": _figure(cells, differ, wish),
    }
    return Subject("", _scale(cells), title, layout, tasks)


def check_axes(named: Iterable[str], runs: Sequence[Mapping[str, Any]]) -> None:
    """See that every named axis is one of these runs.

    Raises:
        UserError: it is not.
    """
    known = dict.fromkeys([*(key for options in runs for key in options), "task"])
    for axis in named:
        if axis == "seed":
            raise UserError("seeds of a cell are averaged, so seed is no axis; seed=0 shows one of them.")
        if axis not in known:
            raise unknown("axis of these records:", axis, known)


def reasons(cells: Iterable[Cell]) -> list[str]:
    """A line for each reason why runs have no numbers, with how many have it."""
    found = Counter((cell.state, cell.why) for cell in cells if cell.state != "done")
    return [f"{count} {state}: {why}" for (state, why), count in found.items()]


def _scale(cells: Iterable[Cell]) -> str:
    """The scale of records of one study; runs of no study have none."""
    found = {
        str(cell.record.config["scale"]) if cell.record.config.get("study") else "" for cell in cells if cell.record
    }
    return found.pop() if len(found) == 1 else ""


def _measured(cells: Iterable[Cell], wanted: str) -> tuple[str, tuple[str, ...]]:
    """The metric to show, and the tasks that are measured by it.

    Raises:
        UserError: nothing is measured by the metric that is asked for.
    """
    found: dict[str, dict[str, None]] = {}
    for cell in cells:
        for measure in cell.record.measures if cell.record else ():
            found.setdefault(measure["metric"], {})[measure["task"]] = None
    if wanted in FIRST_TASK:
        return wanted, (FIRST_TASK[wanted],)
    if wanted and wanted not in found:
        raise unknown("metric of these records:", wanted, [*found, *FIRST_TASK])
    metric = wanted or next((name for name in IN_ORDER if name in found), next(iter(found), IN_ORDER[0]))
    return metric, tuple(found.get(metric, ()))


def _figure(cells: Sequence[Cell], differ: Sequence[str], wish: Wish) -> dict[str, Any]:
    """The figure that is asked for, or the one that fits: curves against the sparsity, lines against another axis.

    Raises:
        UserError: there is no such kind, or no axis of numbers for lines.
    """
    if wish.figure and wish.figure not in KINDS:
        raise unknown("figure", wish.figure, KINDS)
    numeric = [wish.x] if wish.x else [axis for axis in sorted(differ, key=place) if _is_numeric(cells, axis)]
    if wish.figure == "lines" and not numeric:
        raise UserError("figure=lines needs an axis with at least three numbers; name one by x=<axis>.")
    if wish.figure not in ("", "lines"):
        return {"kind": wish.figure}
    if numeric and numeric[0] == "sparsity" and wish.figure != "lines":
        return {"kind": "curves"}
    if numeric:
        return {"kind": "lines", "x": numeric[0], "lines": "method"}
    return {"kind": "bars"}


def _is_numeric(cells: Sequence[Cell], axis: str) -> bool:
    values = {cell.axes[axis] for cell in cells if is_number(cell.axes.get(axis))}
    return len(values) >= FEWEST_ON_A_LINE
