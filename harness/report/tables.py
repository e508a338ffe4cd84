"""Laying cells out as the paper's table, in Markdown and LaTeX."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from harness.core.pattern import read_n_of_m
from harness.core.tolerance import TOLERANCE
from harness.record.dense import BESIDE, NONE, dense_rows, is_dense, name_of_row
from harness.report.compare import further_axes
from harness.report.layout import axis_text, column_of, heading, is_number, level, metric_of, varying
from harness.report.numbers import number
from harness.report.tidy import SIZES
from harness.runtime import escape

MARKS = {"within tolerance": "✓", "off": "✗", "not comparable": "n/c", "missing": ""}
STALE = "†"
MISSED = "‡"
UNITS = {
    "seconds": " (s)", "fitness": " (nats)", "prefill_ms": " (ms)", "decode_tokens_per_s": " (tokens/s)",
    "peak_bytes": " (GiB)",
}  # fmt: skip
UNITS_OF_SIZES = {"macs": (1e9, "G"), "kv_bytes": (1, "B"), "disk_bytes": (1e6, "MB")}
REPORTED_LEGEND = (
    "In brackets: the reported number and the verdict on ours (✓ within tolerance, ✗ off, n/c not comparable). "
    "No bracket: nothing is reported for the cell."
)
ZEROS_LEGEND = (
    "Sparsity NofM keeps N of every M weights. "
    f"Achieved is the fraction of zeros counted in the weights, the mean over seeds (or the range of a row's cells); "
    f"{MISSED} a seed is more than {TOLERANCE:g} from what was asked of it."
)

STALE_LEGEND = f"{STALE} measured by an earlier revision of a component; running the study again replaces it."


def lay_out(measured: pd.DataFrame, compared: pd.DataFrame, layout: Mapping[str, Any]) -> pd.DataFrame:
    """The wide table: the `rows` axes as index columns, the values of the `columns` axis as columns, cells as text.

    An axis that the layout does not name, and of which one method has several values, becomes an index column too. So
    do the zeros that were counted, behind the sparsity, where any are known, and the parameters where a model was cut,
    beside other sizes that the layout asks for.
    """
    metric = metric_of(layout)
    shown = compared[(compared["metric"] == metric) | compared["task"].isna()]
    row_names = list(layout["rows"])
    *row_keys, column_key = map(column_of, [*row_names, layout.get("columns", "task")])
    forgotten = [axis for axis in further_axes(compared) if column_of(axis) not in (*row_keys, column_key)]
    told_apart = varying(shown, forgotten)
    row_names += told_apart
    row_keys += told_apart
    shown = shown.assign(level=[level(row) for row in shown.itertuples()], text=list(map(_cell, shown.itertuples())))
    rank = _ranking(measured, shown)
    heads: dict[str, tuple[Any, ...]] = {}
    rows: dict[tuple[Any, ...], dict[str, str]] = {}
    zeros: dict[tuple[Any, ...], dict[str, tuple[Any, Any]]] = {}
    sizes: dict[tuple[Any, ...], dict[str, Mapping[str, Any]]] = {}
    for row in _spread(shown, [*row_keys, column_key]):
        head, place = _head(row, column_key, rank)
        heads.setdefault(head, place)
        values = tuple(row.get(key, "") for key in row_keys)
        rows.setdefault(values, {}).setdefault(head, row["text"])
        zeros.setdefault(values, {}).setdefault(head, (row.get("achieved"), row.get("missed")))
        sizes.setdefault(values, {}).setdefault(head, row)
    order = sorted(rows, key=lambda values: [rank(key, value) for key, value in zip(row_keys, values, strict=True)])
    columns = sorted(heads, key=lambda head: heads[head])
    lines = [[*map(axis_text, values), *(rows[values].get(head, "") for head in columns)] for values in order]
    table = pd.DataFrame(lines, columns=[*row_names, *(head + UNITS.get(metric, "") for head in columns)])
    behind = row_names.index("sparsity") + 1 if "sparsity" in row_names else len(row_names)
    counted = _sizes([sizes[values] for values in order], layout, parameters=_counts(shown, layout))
    counted["achieved"] = [_achieved(zeros[values].values()) for values in order]
    for name, texts in counted.items():
        if any(texts):
            table.insert(behind, name, texts, allow_duplicates=True)
    return table


def _counts(shown: pd.DataFrame, layout: Mapping[str, Any]) -> bool:
    """Return whether the table counts parameters: if it is asked to, or if a model was cut."""
    return bool(layout.get("parameters") or (shown["parameters"] < shown["of_dense"]).any())


def _sizes(
    found: Sequence[Mapping[str, Mapping[str, Any]]], layout: Mapping[str, Any], *, parameters: bool
) -> dict[str, list[str]]:  # fmt: skip
    """The columns of sizes, by name, the last one to stand first; of each row the cells are given by their heads."""
    asked = [name for name in reversed(SIZES) if layout.get(name)]
    columns = {name: [_size(name, cells.values()) for cells in found] for name in asked}
    if parameters:
        columns["parameters"] = [
            _parameters((row.get("parameters"), row.get("of_dense")) for row in cells.values()) for cells in found
        ]
    return columns


def _size(name: str, cells: Iterable[Mapping[str, Any]]) -> str:
    """A size of a row's models: a number, or the least and the most."""
    known = [row[name] for row in cells if is_number(row.get(name)) and not pd.isna(row[name])]
    divisor, unit = UNITS_OF_SIZES[name]
    ends = {f"{end(known) / divisor:.2f}".removesuffix(".00"): None for end in (min, max)} if known else {}
    return f"{'–'.join(ends)} {unit}" if ends else ""


def _parameters(sizes: Iterable[tuple[Any, Any]]) -> str:
    """Parameters of a row's models, in millions, and of the dense one: a number, or the least and the most."""
    known = [(size, dense) for size, dense in sizes if is_number(size) and not pd.isna(size)]
    if not known:
        return ""
    ends = {f"{end(size for size, _ in known) / 1e6:.2f}": None for end in (min, max)}
    shares = {f"{end(size / dense for size, dense in known):.1%}": None for end in (min, max)}
    return f"{'–'.join(ends)} M ({'–'.join(shares)})"


def _achieved(zeros: Iterable[tuple[Any, Any]]) -> str:
    """Zeros of a row's cells: one fraction, or the least and the most; marked where one misses what was asked."""
    known = [(achieved, missed) for achieved, missed in zeros if is_number(achieved) and not pd.isna(achieved)]
    if not known:
        return ""
    ends = {f"{end(achieved for achieved, _ in known):.4f}": None for end in (min, max)}
    return "–".join(ends) + (MISSED if any(missed > TOLERANCE for _, missed in known) else "")


def _spread(shown: pd.DataFrame, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows wherever they belong: an unmeasured point to every task, a dense cell to every scope of its model."""
    tasks = list(dict.fromkeys(shown["task"].dropna())) or [""]
    pruned = shown[~dense_rows(shown)]
    scopes = pruned.groupby("model")["scope"].unique().to_dict() if "scope" in keys else {}
    for row in shown.to_dict("records"):
        in_tasks = tasks if pd.isna(row["task"]) else [row["task"]]
        in_scopes = scopes.get(row["model"], [row["scope"]]) if is_dense(row) else [row["scope"]]
        for task, scope in itertools.product(in_tasks, in_scopes):
            yield row | {"task": task, "scope": scope}


def _head(row: Mapping[str, Any], key: str, rank: Callable[[str, Any], Any]) -> tuple[str, tuple[Any, ...]]:
    """The column of a row and its place; one that the axis does not concern has a column named by its method.

    What a model was pruned without (a planner, a recovery) is `none`.
    """
    value = row.get(key, "")
    if value == "" and key.partition(".")[0] in BESIDE and not is_dense(row):
        return NONE, (0, (0, 0))
    if value == "" and key != "task":
        return name_of_row(row), (0, rank("method", row["method"]))
    return axis_text(value), (1, rank(key, value))


def _ranking(measured: pd.DataFrame, shown: pd.DataFrame) -> Callable[[str, Any], tuple[Any, ...]]:
    """Where a value stands on an axis: nothing first, numbers ascending, the rest in the study's order; dense first."""
    order = {key: list(dict.fromkeys(measured[key].unique())) for key in measured}
    order["task"] = list(dict.fromkeys(shown["task"]))
    order["method"] = [NONE, *(name for name in order["method"] if name != NONE)]

    def rank(key: str, value: Any) -> tuple[Any, ...]:
        if key == "level":
            return _fraction(value), value
        if value == "":
            return (0, 0)
        known = order.get(key, [])
        return (1, value) if is_number(value) else (2, known.index(value) if value in known else len(known))

    return rank


def _fraction(level: str) -> float:
    if found := read_n_of_m(level):
        keep, of = found
        return 1 - keep / of
    return float(level)


def _cell(row: Any) -> str:
    if pd.isna(row.ours):
        return _absent(row)
    text = number(row.ours, row.metric)
    if row.n > 1 and not pd.isna(row.sd):
        text += f" ± {number(row.sd, row.metric)}"
    if row.state == "stale":
        text += STALE
    if pd.isna(row.reported):
        return text
    return f"{text} ({number(row.reported, row.metric)} {MARKS[row.verdict]})"


def _absent(row: Any) -> str:
    state = str(row.state) if not pd.isna(row.state) else "missing"
    known = "" if pd.isna(row.reported) else f" ({number(row.reported, row.metric)})"
    done = "not finite" if row.n else "not measured"
    return {"done": done, "to do": "—"}.get(state, state) + known


def to_markdown(table: pd.DataFrame, title: str, scale: str, compared: pd.DataFrame) -> str:
    """A Markdown table with its title, scale, legend and a count of verdicts."""
    lines = [f"### {heading(escape.markdown(title), escape.markdown(scale))}", "", *markdown_lines(table)]
    verdicts = compared["verdict"].value_counts().to_dict()
    counts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
    stale = [STALE_LEGEND] if (compared["state"] == "stale").any() else []
    hardware = compared.loc[(compared["metric"] == "seconds") & compared["protocol"].notna(), "protocol"].unique()
    timed = [f"Seconds on {escape.markdown(', '.join(hardware))}."] if len(hardware) else []
    said = [f"Verdicts: {counts}."] if _has_reported(compared) else []
    return "\n".join([*lines, "", _legend(compared), *stale, *timed, *said, ""])


def _legend(compared: pd.DataFrame) -> str:
    return " ".join([REPORTED_LEGEND, ZEROS_LEGEND] if _has_reported(compared) else [ZEROS_LEGEND])


def _has_reported(compared: pd.DataFrame) -> bool:
    """Return whether reported numbers are spoken of: in the table of a study, or where one stands beside a cell."""
    return bool((compared["study"] != "").any() or compared["reported"].notna().any())


def markdown_lines(table: pd.DataFrame) -> list[str]:
    """The table alone."""
    head, *rows = [list(map(escape.markdown, row)) for row in [table.columns, *table.itertuples(index=False)]]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [_line(row, widths) for row in [head, ["-" * width for width in widths], *rows]]


def _line(values: Any, widths: list[int]) -> str:
    return "| " + " | ".join(str(value).ljust(width) for value, width in zip(values, widths, strict=True)) + " |"


def to_latex(table: pd.DataFrame, title: str, scale: str, compared: pd.DataFrame) -> str:
    """A booktabs table."""
    caption = f"{escape.latex(title)}, scale {escape.latex(scale)}" if scale else escape.latex(title)
    body = [" & ".join(map(escape.latex, row)) + r" \\" for row in table.itertuples(index=False)]
    head = " & ".join(map(escape.latex, table.columns)) + r" \\"
    return "\n".join(
        [
            r"% needs \usepackage{booktabs,amssymb}",
            r"\begin{table}",
            rf"\caption{{{caption}. {escape.latex(_legend(compared))}}}",
            rf"\begin{{tabular}}{{{'l' * len(table.columns)}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def comparison_text(compared: pd.DataFrame) -> str:
    """Every cell with ours, reported, difference, verdict and reason, one line each."""
    lines = []
    beyond = compared[further_axes(compared)].to_dict("records")
    for row, further in zip(compared.itertuples(), beyond, strict=True):
        ours = "—" if pd.isna(row.ours) else number(row.ours, row.metric)
        theirs = "—" if pd.isna(row.reported) else number(row.reported, row.metric)
        change = "" if pd.isna(row.difference) else f" {row.difference:+.2%}"
        where = f"{row.model} {row.method} {row.allocator} {row.scope} {level(row)} {row.task} {row.metric}"
        where += "".join(f" {axis}={axis_text(value)}" for axis, value in further.items() if value != "")
        unequal = f", at sparsity {row.achieved:.4f}{MISSED}" if row.missed > TOLERANCE else ""
        lines.append(f"{row.verdict:17}{where}: ours {ours}{unequal}, reported {theirs}{change} ({row.why})")
    return "\n".join(lines)
