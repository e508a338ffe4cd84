"""Perplexities of every allocator over those of the uniform one, pruned alike, and what a search has cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean, geometric_mean, stdev
from typing import Any

import pandas as pd

from harness.core.tolerance import TOLERANCE
from harness.record.dense import dense_rows
from harness.report.layout import heading, level
from harness.report.tables import MISSED, markdown_lines
from harness.report.tidy import Cell
from harness.runtime import escape

AGAINST = "uniform"
POINT = ["model", "level", "method"]
LEGEND = (
    "Perplexity over the uniform allocation's of the same seed, the geometric mean over the texts; its mean, standard "
    "deviation and range over seeds. `below` counts the cells (seeds × texts) in which the allocator is better. "
    "Seconds and evaluations are those of the search behind the allocation, wherever it was made. Achieved are the "
    f"zeros of both, means over seeds; {MISSED} in a pair they differ by more than {TOLERANCE:g}."
)


def ratios(measured: pd.DataFrame, cells: Sequence[Cell]) -> pd.DataFrame:
    """One row per model, sparsity, method and allocator that has the uniform one beside it; empty where none has."""
    done = measured[(measured["metric"] == "perplexity") & measured["value"].notna() & ~dense_rows(measured)]
    done = done.assign(level=[level(row) for row in done.itertuples()])
    keys = [*POINT, "seed", "task"]
    uniform = done[done["allocator"] == AGAINST].drop_duplicates(keys).set_index(keys)
    others = done[done["allocator"] != AGAINST].drop_duplicates([*keys, "allocator"]).set_index(keys)
    beside = uniform.reindex(others.index)
    paired = others.assign(ratio=others["value"] / beside["value"], uniform_achieved=beside["achieved"])
    paired = paired.dropna(subset=["ratio"]).reset_index()
    searches = {
        cell.record.fingerprint: cell.record.allocation["search"]
        for cell in cells
        if cell.record and cell.record.allocation.get("search")
    }
    rows = []
    for place, mine in _groups(paired, [*POINT, "allocator"]).items():
        seeds: dict[Any, list[float]] = defaultdict(list)
        for row in mine:
            seeds[row["seed"]].append(row["ratio"])
        by_seed = [geometric_mean(seeds[seed]) for seed in sorted(seeds)]
        rows.append(
            {
                **dict(zip(["model", "sparsity", "method", "allocator"], place, strict=True)),
                "ratio": geometric_mean(by_seed),
                "sd": stdev(by_seed) if len(by_seed) > 1 else float("nan"),
                "least": min(by_seed),
                "most": max(by_seed),
                "seeds": len(by_seed),
                "achieved": _mean([row["achieved"] for row in mine]),
                "uniform_achieved": _mean([row["uniform_achieved"] for row in mine]),
                "unequal": any(abs(row["achieved"] - row["uniform_achieved"]) > TOLERANCE for row in mine),
                "below": f"{sum(row['ratio'] < 1 for row in mine)} of {len(mine)}",
                **_cost([searches[one] for one in {row["fingerprint"]: 0 for row in mine} if one in searches]),
            }
        )
    return pd.DataFrame(rows)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not pd.isna(value)]
    return fmean(known) if known else float("nan")


def _groups(frame: pd.DataFrame, keys: Sequence[str]) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """The rows of each combination of values, in the order of the frame."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in frame.to_dict("records"):
        groups[tuple(row[key] for key in keys)].append(row)
    return groups


def _cost(searches: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean seconds and evaluations of the searches behind some records."""
    nothing = float("nan")
    return {
        key: sum(search[key] for search in searches) / len(searches) if searches else nothing
        for key in ("seconds", "evaluations")
    }


def to_markdown(table: pd.DataFrame, title: str, scale: str) -> str:
    """The table as text."""
    shown = pd.DataFrame(
        {
            **{name: table[name] for name in ("model", "sparsity")},
            "achieved": [_zeros(row) for row in table.itertuples()],
            **{name: table[name] for name in ("method", "allocator")},
            "× uniform": [_ratio(row) for row in table.itertuples()],
            "range": [f"{row.least:.3f}–{row.most:.3f}" if row.seeds > 1 else "" for row in table.itertuples()],
            "below": table["below"],
            "search (s)": ["" if pd.isna(value) else f"{value:.0f}" for value in table["seconds"]],
            "evaluations": ["" if pd.isna(value) else f"{value:.0f}" for value in table["evaluations"]],
        }
    )
    head = f"### {heading(f'{escape.markdown(title)}: against uniform', escape.markdown(scale))}"
    return "\n".join([head, "", *markdown_lines(shown), "", LEGEND, ""])


def _zeros(row: Any) -> str:
    """The allocator's zeros beside the uniform one's."""
    if pd.isna(row.achieved) or pd.isna(row.uniform_achieved):
        return ""
    return f"{row.achieved:.4f} : {row.uniform_achieved:.4f}" + (MISSED if row.unequal else "")


def _ratio(row: Any) -> str:
    return f"{row.ratio:.3f}" + ("" if pd.isna(row.sd) else f" ± {row.sd:.3f}")
