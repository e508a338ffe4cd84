"""The ranking of a study as files: ranking.{md,csv,svg,png}, ranking_ratios.csv and ranking_profile.csv."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from harness.core.tolerance import TOLERANCE
from harness.report.files import write_csv, write_text
from harness.report.layout import axis_text, heading
from harness.report.profile import profile
from harness.report.ranking import WITHIN, Contest, against, contest, group_columns, standings
from harness.report.ranking_figure import draw
from harness.report.style import Drawing, save
from harness.report.tables import markdown_lines
from harness.report.tidy import Cell
from harness.runtime import escape

RANKS = "Ranks are of each cell ({over}), 1 the best; their means are over {ranked} cells{interval}. "
INTERVAL = (
    ", those of the same {seeds} seeds; [95 % interval, t with {degrees} over the seeds]: of other "
    "calibration texts, not of other models"
)
SHARES = (
    "Of all {cells} cells, `best` and `≤ x` are the shares in which it is the best, or within a factor x of the best. "
    "Seconds are the median of pruning{machine}; what points share in one process is paid by the first. `beyond` is "
    "achieved less asked sparsity, least to most, in points: who removes more than asked is at a disadvantage."
)
RATIOS = (
    "Perplexity over that of {against}, paired by model, seed and text, geometric means [95 % interval over seeds]. "
    "≠ the two differ by more than {points:g} points of sparsity in a cell."
)


def write_ranking(
    measured: pd.DataFrame, cells: Sequence[Cell], layout: Mapping[str, Any], title: str, scale: str, folder: Path
) -> None:
    """Write the ranking of a study; nothing where fewer than two competitors have a cell in common.

    Raises:
        UserError: the layout's `ranking` does not fit the study.
    """
    found = contest(measured, cells, layout)
    if len(found.competitors) < 2 or found.rows.empty:
        return
    order = standings(found)
    baseline = layout["ranking"].get("against")
    baseline = (
        baseline if baseline in found.competitors else None
    )  # it may be left out of a narrowed study, or not run yet
    ratios = against(found, baseline, group_columns(found)) if baseline else pd.DataFrame()
    write_csv(order, folder / "ranking.csv")
    write_csv(profile(found.losses), folder / "ranking_profile.csv")
    if baseline:
        write_csv(ratios, folder / "ranking_ratios.csv")
    title = heading(f"{title}: ranking", scale)
    write_text(to_markdown(found, order, ratios, baseline, title), folder / "ranking.md")
    save(draw(Drawing(), found, order, baseline), title, folder, "ranking")


def to_markdown(found: Contest, order: pd.DataFrame, ratios: pd.DataFrame, baseline: Any, title: str) -> str:
    """The standings and, below them, the ratios to the baseline if there is one, a row for each group."""
    lines = [f"### {escape.markdown(title)}", "", *markdown_lines(_standings(found, order)), "", _legend(found, order)]
    if not ratios.empty:
        names = [name for name in order[found.of] if name != baseline]
        told = RATIOS.format(against=baseline, points=100 * TOLERANCE)
        lines += ["", *markdown_lines(_ratios(found, ratios, names)), "", told]
    return "\n".join([*lines, ""])


def _standings(found: Contest, order: pd.DataFrame) -> pd.DataFrame:
    rows = order.to_dict("records")
    return pd.DataFrame(
        {
            found.of: [axis_text(row[found.of]) for row in rows],
            "mean rank": [f"{row['rank']:.2f}{_interval(row['low'], row['high'])}" for row in rows],
            "best": [f"{row['best']:.0%}" for row in rows],
            **{f"≤ {share:g}": [f"{row[f'within {share:g}']:.0%}" for row in rows] for share in WITHIN},
            "prune (s)": ["" if math.isnan(row["seconds"]) else f"{row['seconds']:.3g}" for row in rows],
            "beyond": [_beyond(row) for row in rows],
        }
    )


def _interval(low: float, high: float) -> str:
    return "" if math.isnan(low) else f" [{low:.2f}, {high:.2f}]"


def _beyond(row: Mapping[str, float]) -> str:
    least, most = (round(100 * row[f"{end} beyond"], 2) + 0.0 for end in ("least", "most"))  # no −0
    return (
        ""
        if math.isnan(least)
        else f"{least:+.2f}"
        if f"{least:.2f}" == f"{most:.2f}"
        else f"{least:+.2f} to {most:+.2f}"
    )


def _legend(found: Contest, order: pd.DataFrame) -> str:
    seeds, machines = int(order["seeds"].iloc[0]), [name for name in dict.fromkeys(found.rows["machine"]) if name]
    interval = INTERVAL.format(seeds=seeds, degrees=_degrees(seeds)) if seeds > 1 else ", of one seed"
    text = (RANKS + SHARES).format(
        over=", ".join(name.replace("level", "sparsity") for name in found.over),
        ranked=order["ranked"].iloc[0],
        interval=interval,
        cells=order["cells"].iloc[0],
        machine=f" on {machines[0]}" if len(machines) == 1 else ", left out as the machines differ",
    )
    if found.left_out:
        text += f" {found.left_out} cells are left out, which some lack."
    return text


def _degrees(seeds: int) -> str:
    return f"{seeds - 1} degree{'s' if seeds > 2 else ''} of freedom"


def _ratios(found: Contest, ratios: pd.DataFrame, names: Sequence[Any]) -> pd.DataFrame:
    """Groups × competitors."""
    groups = group_columns(found)
    texts: dict[tuple[Any, ...], dict[Any, str]] = {}
    for row in ratios.to_dict("records"):
        texts.setdefault(tuple(row[name] for name in groups), {})[row[found.of]] = _ratio(row)
    heads = [name.replace("level", "sparsity") for name in groups]
    lines = [[*map(axis_text, place), *(mine.get(name, "") for name in names)] for place, mine in texts.items()]
    return pd.DataFrame(lines, columns=[*heads, *map(axis_text, names)])


def _ratio(row: Mapping[str, Any]) -> str:
    text = "not finite" if math.isnan(row["ratio"]) else f"{row['ratio']:.3f}"
    text += "" if math.isnan(row["low"]) else f" [{row['low']:.3f}, {row['high']:.3f}]"
    return text + (" ≠" if row["unequal"] else "")
