"""Rankings for a study's `ranking:`: the values of one axis (methods) against one another, over cells that all have.

A cell is one combination of the axes in `over`, a block is a cell without its seed. A loss is a perplexity, or one over
an accuracy: smaller is better, and a value that is not finite is the largest there is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pandas as pd

from harness.core.tolerance import TOLERANCE
from harness.record.dense import dense_rows
from harness.record.schema import hardware_name
from harness.report.interval import mean_interval
from harness.report.layout import column_of, level, metric_of
from harness.report.profile import factors
from harness.report.reported import ACCURACIES
from harness.report.tidy import AXES, COLUMNS, Cell
from harness.runtime.errors import UserError

WITHIN = (1.1, 2.0)
"""The shares of cells within these factors of the best stand in the table."""


@dataclass(frozen=True)
class Contest:
    """The rows that are ranked: one for each cell and competitor, every cell with all competitors.

    Attributes:
        rows: the columns of `over` and `of`, and `loss`, `asked`, `achieved`, `seconds`, `machine`, `fingerprint`.
        of: the axis that is ranked; its values stand in `competitors`, in the study's order.
        over: the columns that make a cell, the seed among them.
        left_out: how many cells some of the competitors lack.
    """

    rows: pd.DataFrame
    of: str
    over: tuple[str, ...]
    competitors: tuple[str, ...]
    left_out: int

    @property
    def losses(self) -> pd.DataFrame:
        """Cells × competitors."""
        index = [name for name in self.over if name != "seed"]
        return self.rows.pivot(index=[*index, "seed"], columns=self.of, values="loss")[list(self.competitors)]


def contest(measured: pd.DataFrame, cells: Sequence[Cell], layout: Mapping[str, Any]) -> Contest:
    """The cells of a study that every competitor has a value for.

    A competitor without any value (not run yet, refused everywhere) takes no part.

    Raises:
        UserError: a cell has several values of one competitor, so that `over` forgets an axis.
    """
    wanted, metric = layout["ranking"], metric_of(layout)
    of, over = column_of(wanted["of"]), tuple(dict.fromkeys(map(column_of, [*wanted["over"], "seed"])))
    rows = measured[(measured["metric"] == metric) & measured["protocol"].notna() & ~dense_rows(measured)]
    rows = rows.assign(level=[level(row) for row in rows.itertuples()], loss=rows["value"])
    rows = rows[~rows["task"].str.startswith("mean")]  # its tasks are here already
    if metric in ACCURACIES:
        rows["loss"] = 1 / rows["value"].where(rows["value"] > 0)
    rows["loss"] = rows["loss"].fillna(math.inf)
    if "among" in wanted:
        rows = rows[rows[of].isin(wanted["among"])]
    _refuse_ambiguous(rows, of, over)
    rows = rows.assign(**_of_records(rows, cells)).drop(columns=["value"])
    competitors = tuple(dict.fromkeys(rows[of]))
    counted = rows.groupby(list(over), sort=False)[of].transform("nunique")
    whole = rows[counted == len(competitors)]
    left_out = len(rows.drop_duplicates(list(over))) - len(whole.drop_duplicates(list(over)))
    return Contest(whole, of, over, competitors, left_out)


def _refuse_ambiguous(rows: pd.DataFrame, of: str, over: Sequence[str]) -> None:
    if not rows.duplicated([*over, of]).any():
        return
    axes = [
        *map(column_of, AXES),
        "task",
        "variant",
        *(name for name in rows if name not in (*COLUMNS, "level", "loss")),
    ]
    groups = rows.groupby([*over, of], sort=False)
    forgotten = next((axis for axis in axes if (groups[axis].nunique() > 1).any()), "one more axis")
    raise UserError(
        f"the ranking of {of} has several values in a cell; add {forgotten.replace('level', 'sparsity')} to its `over`."
    )


def _of_records(rows: pd.DataFrame, cells: Sequence[Cell]) -> dict[str, list[Any]]:
    """Sparsity asked and achieved, the seconds of pruning and the machine, for each row."""
    records = {cell.record.fingerprint: cell.record for cell in cells if cell.record}
    found: dict[str, list[Any]] = {"asked": [], "achieved": [], "seconds": [], "machine": []}
    for fingerprint in rows["fingerprint"]:
        record = records.get(fingerprint)
        sparsity = record.sparsity if record else {}
        found["asked"].append(sparsity.get("asked"))
        found["achieved"].append(sparsity.get("achieved"))
        found["seconds"].append(record.stages.get("prune", {}).get("seconds") if record else None)
        found["machine"].append(hardware_name(record.provenance["hardware"]) if record else "")
    return found


def balanced(frame: pd.DataFrame) -> pd.DataFrame:
    """The blocks of a frame (index: a cell, `seed` last) that have the largest set of seeds there is.

    Of sets of one size it is the one that most blocks have. A mean over seeds is of the same blocks for each seed then.
    """
    if frame.empty:
        return frame
    names = list(frame.index.names)
    seeds = frame.reset_index()[names].groupby(names[:-1], sort=False, dropna=False)["seed"].agg(frozenset)
    counts = seeds.value_counts()
    best = max(counts.index, key=lambda some: (len(some), counts[some], -min(some)))
    chosen = set(seeds.index[seeds == best])
    single = len(names) == 2
    return frame[[(cell[0] if single else tuple(cell[:-1])) in chosen for cell in frame.index]]


def standings(contest: Contest) -> pd.DataFrame:
    """A row per competitor, the best mean rank first.

    Ranks are taken in every cell, equal losses share theirs. `rank` is the mean over the balanced cells, `low` and
    `high` are its 95 % t interval with the *seed* as the unit: the mean over all blocks is one number a seed, and S
    such numbers have S − 1 degrees of freedom. Models, sparsities and texts are chosen and not drawn, and the cells of
    one seed share its calibration tokens, so that neither counts as a repetition: the interval is about other
    calibration texts for these models, and says nothing of other models. NaN with one seed; cut off at the first and
    the last rank.

    Returns:
        The axis, rank, low, high, seeds, ranked (the balanced cells); over all cells, of which there are `cells`, best
        and the shares within `WITHIN` of the best, the median seconds of pruning (NaN where records come from several
        machines), and the extremes of achieved − asked sparsity.
    """
    losses = contest.losses
    ranks = balanced(losses).rank(axis=1, method="average")
    by_seed = ranks.groupby(level="seed").mean()
    factor = factors(losses)
    one_machine = contest.rows["machine"].nunique() == 1
    rows = []
    for name in contest.competitors:
        here = contest.rows[contest.rows[contest.of] == name]
        once = here.drop_duplicates("fingerprint")
        beyond = (once["achieved"] - once["asked"]).astype(float)
        low, high = mean_interval(list(by_seed[name]))
        rows.append(
            {
                contest.of: name,
                "rank": fmean(by_seed[name]),
                "low": max(1.0, low) if low == low else low,
                "high": min(float(len(contest.competitors)), high) if high == high else high,
                "seeds": len(by_seed),
                "ranked": len(ranks),
                "cells": len(losses),
                "best": float((factor[name] <= 1).mean()),
                **{f"within {share:g}": float((factor[name] <= share).mean()) for share in WITHIN},
                "seconds": once["seconds"].astype(float).median() if one_machine else math.nan,
                "least beyond": beyond.min(),
                "most beyond": beyond.max(),
            }
        )
    return pd.DataFrame(rows).sort_values("rank", kind="stable", ignore_index=True)


def group_columns(contest: Contest) -> list[str]:
    """The axes that tell the ratios apart: those of a cell but model, seed and task."""
    return [name for name in contest.over if name not in ("model", "seed", "task")]


def against(contest: Contest, baseline: str, groups: Sequence[str]) -> pd.DataFrame:
    """Every other competitor over a baseline, paired by cell, within each group: each combination of those columns.

    The ratio is that of perplexities (of accuracies: the baseline's over the competitor's), its geometric mean over the
    balanced cells; the interval is that of `mean_interval` over the mean log-ratio of each seed. Cells in which one of
    the two is not finite are counted in `not finite` and are no part of the mean.
    """
    rows = []
    for place, here in _grouped(contest.rows, groups):
        inner = Contest(here, contest.of, contest.over, contest.competitors, 0)
        losses = inner.losses
        achieved = here.pivot(index=list(losses.index.names), columns=contest.of, values="achieved").astype(float)
        for name in contest.competitors:
            if name != baseline:
                told = _paired(losses[name], losses[baseline])
                gap = (achieved[name] - achieved[baseline]).abs().max()
                more = {"achieved": achieved[name].mean(), "unequal": bool(gap > TOLERANCE)}
                rows.append({**dict(zip(groups, place, strict=True)), contest.of: name, **told, **more})
    return pd.DataFrame(rows)


def _grouped(rows: pd.DataFrame, keys: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], pd.DataFrame]]:
    if keys:
        yield from rows.groupby(list(keys), sort=False)
    else:
        yield (), rows


def _paired(mine: pd.Series, other: pd.Series) -> dict[str, float]:
    """Ratio, interval and counts of two losses by cell."""
    finite = (mine < math.inf) & (other < math.inf)
    logs = balanced((mine[finite] / other[finite]).map(math.log).to_frame("log"))
    by_seed = list(logs["log"].groupby(level="seed").mean()) if len(logs) else []
    low, high = mean_interval(by_seed)
    return {
        "ratio": math.exp(fmean(by_seed)) if by_seed else math.nan,
        "low": math.exp(low),
        "high": math.exp(high),
        "seeds": len(by_seed),
        "cells": len(logs),
        "below": int((logs["log"] < 0).sum()),
        "not finite": int((~finite).sum()),
    }
