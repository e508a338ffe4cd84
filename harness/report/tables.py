"""Laying cells out as the paper's table, in Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

MARKS = {"within tolerance": "✓", "off": "✗", "not comparable": "n/c", "missing": ""}
STALE = "†"
LATEX_MARKS = {
    "✓": r"$\checkmark$",
    "✗": r"$\times$",
    "%": r"\%",
    "_": r"\_",
    "±": r"$\pm$",
    "—": "---",
    "†": r"\textdagger{}",
    "≥": r"$\geq$",
}
LEGEND = (
    "In brackets: the reported number and the verdict on ours (✓ within tolerance, ✗ off, n/c not comparable). "
    "No bracket: nothing is reported for the cell. Sparsity NofM keeps N of every M weights."
)

STALE_LEGEND = f"{STALE} measured by an earlier revision of a component; running the study again replaces it."


def lay_out(measured: pd.DataFrame, compared: pd.DataFrame, layout: Mapping[str, Any]) -> pd.DataFrame:
    """The wide table: `rows` axes as index columns, tasks (or models) as columns, cells as text."""
    metric = layout.get("metric") or "perplexity"
    row_keys = [{"sparsity": "level"}.get(key, key) for key in layout["rows"]]
    column_key = layout.get("columns", "task")
    shown = _spread_dense(compared[(compared["metric"] == metric) | compared["task"].isna()], row_keys)
    shown = shown.assign(
        level=[_level(row) for row in shown.itertuples()], text=[_cell(row) for row in shown.itertuples()]
    )
    columns = list(dict.fromkeys(shown[column_key].dropna()))
    rows: dict[tuple[Any, ...], dict[str, str]] = {}
    for row in shown.to_dict("records"):
        cells = rows.setdefault(tuple(row[key] for key in row_keys), {})
        for column in columns if pd.isna(row[column_key]) else [row[column_key]]:
            cells.setdefault(column, row["text"])
    table = pd.DataFrame([dict(zip(row_keys, key, strict=True)) | cells for key, cells in rows.items()])
    return _ordered(table, row_keys, measured)[[*row_keys, *columns]].fillna("").rename(columns={"level": "sparsity"})


def _spread_dense(frame: pd.DataFrame, row_keys: list[str]) -> pd.DataFrame:
    """A dense cell belongs to every scope that the table shows for its model."""
    if "scope" not in row_keys:
        return frame
    dense, pruned = frame[frame["method"] == "none"], frame[frame["method"] != "none"]
    scopes = pruned.groupby("model")["scope"].unique().to_dict()
    spread = [row | {"scope": scope} for row in dense.to_dict("records") for scope in scopes.get(row["model"], ["all"])]
    return pd.concat([pd.DataFrame(spread, columns=frame.columns), pruned], ignore_index=True)


def _ordered(table: pd.DataFrame, row_keys: list[str], measured: pd.DataFrame) -> pd.DataFrame:
    """Rows in the order in which the study names models, scopes, allocators, methods; dense first in its group."""
    ranks = {
        key: {value: rank for rank, value in enumerate(dict.fromkeys(measured[key]))}
        for key in ("model", "scope", "allocator")
    }
    methods = ["none", *(m for m in dict.fromkeys(measured["method"]) if m != "none")]
    ranks["method"] = {value: rank for rank, value in enumerate(methods)}

    def rank(key: str, value: Any) -> Any:
        if key == "level":
            return (0.0, "") if value == "0" else (_fraction(str(value)), str(value))
        return ranks.get(key, {}).get(value, len(ranks.get(key, {}))) if key in ranks else str(value)

    order = sorted(table.index, key=lambda i: tuple(rank(key, table.loc[i, key]) for key in row_keys))
    return table.loc[order]


def _fraction(level: str) -> float:
    if "of" in level:
        keep, of = map(int, level.split("of"))
        return 1 - keep / of
    return float(level)


def _level(row: Any) -> str:
    return "0" if row.method == "none" else row.pattern if "of" in row.pattern else f"{row.sparsity:g}"


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
    return {"done": "not finite", "to do": "—"}.get(state, state) + known


def number(value: float, metric: str) -> str:
    """A perplexity with two decimals, or none above a thousand; an accuracy in percent."""
    if metric != "perplexity":
        return f"{100 * value:.2f}"
    return f"{value:.2f}" if value < 1000 else f"{value:.0f}" if value < 1e5 else f"{value:.2e}"


def to_markdown(table: pd.DataFrame, title: str, scale: str, compared: pd.DataFrame) -> str:
    """A Markdown table with its title, scale, legend and a count of verdicts."""
    widths = [max(len(str(value)) for value in [name, *table[name]]) for name in table.columns]
    lines = [f"### {title} · scale {scale}", "", _line(table.columns, widths), _line(["-" * w for w in widths], widths)]
    lines += [_line(row, widths) for row in table.itertuples(index=False)]
    verdicts = compared["verdict"].value_counts().to_dict()
    counts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
    stale = [STALE_LEGEND] if (compared["state"] == "stale").any() else []
    return "\n".join([*lines, "", LEGEND, *stale, f"Verdicts: {counts}.", ""])


def _line(values: Any, widths: list[int]) -> str:
    return "| " + " | ".join(str(value).ljust(width) for value, width in zip(values, widths, strict=True)) + " |"


def to_latex(table: pd.DataFrame, title: str, scale: str) -> str:
    """A booktabs table."""
    body = [" & ".join(map(_latex, row)) + r" \\" for row in table.itertuples(index=False)]
    head = " & ".join(map(_latex, table.columns)) + r" \\"
    return "\n".join(
        [
            r"% needs \usepackage{booktabs,amssymb}",
            r"\begin{table}",
            rf"\caption{{{_latex(title)}, scale {scale}. {_latex(LEGEND)}}}",
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


def _latex(value: Any) -> str:
    text = str(value)
    for character, replacement in LATEX_MARKS.items():
        text = text.replace(character, replacement)
    return text


def comparison_text(compared: pd.DataFrame) -> str:
    """Every cell with ours, reported, difference, verdict and reason, one line each."""
    lines = []
    for row in compared.itertuples():
        ours = "—" if pd.isna(row.ours) else number(row.ours, row.metric)
        theirs = "—" if pd.isna(row.reported) else number(row.reported, row.metric)
        change = "" if pd.isna(row.difference) else f" {row.difference:+.2%}"
        where = f"{row.model} {row.method} {row.allocator} {row.scope} {_level(row)} {row.task} {row.metric}"
        lines.append(f"{row.verdict:17}{where}: ours {ours}, reported {theirs}{change} ({row.why})")
    return "\n".join(lines)
