"""Our numbers beside reported ones, with a verdict per cell and the reason for it.

A measured cell meets a reported number only if both are of one model, method, allocator, scope, sparsity, pattern and
task, and if `pairs.csv` says that their protocols may meet; everything else is "not comparable" and says why. A value
on any further axis of the study (`method.alpha`) makes a cell of its own, which meets no reported number.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Literal

import pandas as pd

from harness.record.dense import is_dense, is_pruned
from harness.report import presentation, tidy
from harness.report.reported import ACCURACIES, Pair, flagged, pair_of

Verdict = Literal["within tolerance", "off", "not comparable", "missing"]
SIZES = ("parameters", "of_dense", *tidy.SIZES)
ABSENT = {"ours": math.nan, "sd": math.nan, "n": 0, "achieved": math.nan, "missed": 0.0}
ABSENT |= dict.fromkeys(SIZES, math.nan)
Values = Mapping[str, Any]
"""One row of a frame, by column."""

POINT = ("study", "scale", "model", "method", "variant", "allocator", "scope", "sparsity", "pattern")
JOIN = ("model", "method", "allocator", "scope", "sparsity", "pattern")
COLUMNS = (
    *POINT, "task", "metric", "protocol", "state", "achieved", "ours", "sd", "n", "reported", "paper", "table", "seeds",
    "difference", "tolerance", "verdict", "why", "also", "missed", *SIZES,
)  # fmt: skip


def compare(
    ours: pd.DataFrame,
    reported: pd.DataFrame,
    pairs: pd.DataFrame,
    dense: pd.DataFrame,
    tasks: Sequence[tuple[str, str]] = (),
    expected: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """One row per cell of ours, beside the best reported number of that cell.

    Args:
        ours: the tidy table, a row per measure; seeds of a cell are averaged, unmeasured points have no task.
        reported: every reported number.
        pairs: which reported protocol may meet which of ours.
        dense: known values of dense models; a model that misses its value takes its pruned cells out of comparison.
        tasks: the (task, metric) pairs that every point is to be measured by.
        expected: reported rows that the study reproduces; those of points that `ours` lacks are added as missing.

    Returns:
        The columns of `COLUMNS`, with the further axes of `ours` after those of `POINT`. `difference` and `tolerance`
        are relative for perplexity, absolute for accuracies; where reported numbers have seeds (`seeds`), both are of
        the seed that differs most. `achieved` is the fraction of zeros, the mean over seeds, and `missed` says by how
        much a seed is away from what was asked of it at most.
    """
    axes = [name for name in ours.columns if name not in tidy.COLUMNS]
    table = Reported(reported, pairs, axes)
    located = _located(ours, axes)
    cells = _cells(located)
    gates = _gates(cells, dense)
    rows = [_row(cell, table.meetings(cell), gates.get(cell.gate, "")) for cell in cells]
    points = {(cell.values["study"], table.key(cell.values)) for cell in cells}
    rows += _unmeasured(located, tasks, table, points)
    if expected is not None:
        known = {key for _, key in points} | {table.key(point) for point, _ in located}
        study = {name: ours[name].iloc[0] if len(ours) else "" for name in ("study", "scale")}
        rows += _not_planned(expected, table, known, study)
    return pd.DataFrame(rows, columns=[*POINT, *axes, *COLUMNS[len(POINT) :]])


def further_axes(compared: pd.DataFrame) -> list[str]:
    """The axes of the study beyond `POINT`, in columns after it; a cell that one does not concern is empty there."""
    names = list(compared.columns)
    return names[len(POINT) : names.index("task")]


@dataclass(frozen=True)
class Measured:
    """One task of one point, measured; `by_seed` holds a value per seed, NaN where it is not finite.

    `zeros` holds the fraction achieved and the one asked for of every seed of which they are known.
    """

    values: Values
    by_seed: Mapping[int, float]
    stderr: float
    samples: float
    zeros: Sequence[tuple[float, float]] = ()

    @property
    def mean(self) -> float:
        return fmean(self.by_seed.values())

    @property
    def gate(self) -> tuple[str, str, str]:
        """The dense value that this cell depends on; dense cells depend on none."""
        values = self.values
        return values["scale"], "" if is_dense(values) else values["model"], values["protocol"]


def _point(row: Values, axes: Sequence[str]) -> dict[str, Any]:
    """The coordinates of a row; a dense model has no allocator, scope or sparsity."""
    point = {name: "" if _is_empty(row.get(name)) else row[name] for name in _names(axes)}
    point["sparsity"] = math.nan if point["sparsity"] == "" else round(float(point["sparsity"]), 6)
    if not is_pruned(point):
        point |= {"allocator": presentation.BASELINE["allocator"], "sparsity": 0.0}
    if is_dense(point):
        point |= {"scope": "all", "pattern": "dense"}
    return point


def _names(axes: Sequence[str]) -> tuple[str, ...]:
    return (*POINT, *axes, "task", "metric", "protocol")


def _is_empty(value: Any) -> bool:
    """Return whether a value of a row is missing: None, NaN."""
    return value is None or value != value


def _located(ours: pd.DataFrame, axes: Sequence[str]) -> list[tuple[dict[str, Any], Values]]:
    """Every row with its coordinates, which are found once for rows of one cell, its seeds."""
    names = _names(axes)
    known: dict[tuple[Any, ...], dict[str, Any]] = {}
    located = []
    for row in ours.to_dict("records"):
        place = tuple(map(row.get, names))
        if place not in known:
            known[place] = _point(row, axes)
        located.append((known[place], row))
    return located


def _cells(located: Iterable[tuple[dict[str, Any], Values]]) -> list[Measured]:
    """Measures grouped over seeds, in the order of the table."""
    groups: dict[tuple[Any, ...], tuple[dict[str, Any], list[Values]]] = {}
    for point, row in located:
        if point["task"] and point["protocol"]:
            groups.setdefault(tuple(point.values()), (point, []))[1].append(row)
    return [
        Measured(
            point | {"state": rows[0].get("status", "")} | {name: _number(rows[0].get(name)) for name in SIZES},
            {_seed(row): _number(row["value"]) for row in rows},
            fmean(_number(row["stderr"]) for row in rows),
            _number(rows[0]["samples"]),
            tuple((row["achieved"], row["asked"]) for row in rows if not _is_empty(row.get("achieved"))),
        )
        for point, rows in groups.values()
    ]


def _seed(row: Values) -> int:
    return 0 if _is_empty(row["seed"]) or row["seed"] == "" else int(row["seed"])


def _number(value: Any) -> float:
    return math.nan if _is_empty(value) else float(value)


def _gates(cells: Iterable[Measured], dense: pd.DataFrame) -> dict[tuple[str, str, str], str]:
    """Why pruned cells of a scale, model and protocol do not count, for every dense value that is known and not met."""
    found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    scales: set[str] = set()
    for cell in cells:
        scales.add(cell.values["scale"])
        if is_dense(cell.values):
            found[cell.values["scale"], cell.values["model"], cell.values["protocol"]].append(cell.mean)
    gates = {}
    for known in dense.to_dict("records"):
        value, tolerance = known["value"], known["tolerance"]
        for scale in scales:
            place = (scale, known["model"], known["our_id"])
            here = f"{value:g} ± {tolerance:g} is known ({known['source']})"
            if place not in found:
                gates[place] = f"dense gate: the dense model is not measured, {here}"
            elif not abs(fmean(found[place]) - value) <= tolerance + 1e-9:
                gates[place] = f"dense gate: the dense model has {fmean(found[place]):.4g} where {here}"
    return gates


@dataclass(frozen=True)
class Meeting:
    """A cell of ours and one reported number of it (or one per seed, from one table)."""

    rows: Sequence[Values]
    verdict: Verdict
    why: str
    difference: float = math.nan
    tolerance: float = math.nan
    seeds: tuple[int, ...] = ()

    @property
    def reported(self) -> float:
        rows = [row for row in self.rows if not self.seeds or row["seed"] in self.seeds]
        return fmean(row["value"] for row in rows)

    def __str__(self) -> str:
        row = self.rows[0]
        outcome = f" ({self.why})" if self.verdict == "not comparable" else ""
        return f"{row['paper']} {row['table']}: {self.reported:g}{outcome}"


class Reported:
    """The reported numbers, found by cell, and what may meet what."""

    def __init__(self, reported: pd.DataFrame, pairs: pd.DataFrame, axes: Sequence[str]) -> None:
        self.axes = axes
        self.pairs = pairs.to_dict("records")
        self.cells: dict[tuple[Any, ...], list[list[Values]]] = defaultdict(list)
        tables: dict[tuple[Any, ...], list[Values]] = {}
        for row in reported.to_dict("records"):
            place = (*self.key(row), *(row[name] for name in ("paper", "table", "task", "metric", "protocol")))
            if pd.isna(row["seed"]):
                self.cells[self.key(row)].append([row])
            elif place in tables:
                tables[place].append(row)
            else:
                tables[place] = [row]
                self.cells[self.key(row)].append(tables[place])

    def key(self, row: Values) -> tuple[Any, ...]:
        """The cell of a row; papers' rows are empty on the study's further axes."""
        place = tuple(f"{row[name]:.4f}" if name == "sparsity" else row[name] for name in JOIN)
        return (*place, *(row.get(axis, "") for axis in self.axes))

    def candidates(self, values: Values) -> list[list[Values]]:
        """Reported numbers of a cell of ours, by task and by what the metric measures, most telling first."""
        alike = ACCURACIES if values["metric"] in ACCURACIES else (values["metric"],)
        found = [
            rows
            for rows in self.cells.get(self.key(values), [])
            if rows[0]["task"] == values["task"] and rows[0]["metric"] in alike
        ]
        return sorted(found, key=lambda rows: _rank(rows[0], values["study"]))

    def meetings(self, cell: Measured) -> list[Meeting]:
        """Every candidate with its verdict, the comparable ones first."""
        met = [_meet(cell, rows, pair_of(self.pairs, cell.values, rows[0])) for rows in self.candidates(cell.values)]
        return sorted(met, key=lambda meeting: meeting.verdict == "not comparable")


def _rank(row: Values, study: str) -> tuple[Any, ...]:
    """Unflagged before flagged; the study's own table, its own paper; verified; printed by the paper, not rerun."""
    paper, _, item = study.partition("_")
    own = row["paper"].lower() == paper
    in_table = any(table.lower().replace(" ", "") == item for table in row["table"].split("; "))
    return bool(flagged(row)), not (own and in_table), not own, row["confidence"] != "verified", "rerun" in row["paper"]


def _meet(cell: Measured, rows: Sequence[Values], pair: Pair | None) -> Meeting:
    """The verdict on one candidate."""
    if reason := _refusal(cell, rows[0], pair):
        return Meeting(rows, "not comparable", reason)
    assert pair is not None
    seeded = [row for row in rows if not pd.isna(row["seed"]) and not is_dense(cell.values)]
    matched = [row for row in seeded if row["seed"] in cell.by_seed]
    if seeded and not matched:
        return Meeting(rows, "not comparable", f"reported for seed {seeded[0]['seed']:g}, which is not measured")
    outcomes = [(_differ(cell, cell.by_seed[row["seed"]], row, pair), row["seed"]) for row in matched]
    (difference, tolerance), _ = max(
        outcomes or [(_differ(cell, cell.mean, rows[0], pair), None)], key=lambda outcome: _excess(*outcome[0])
    )
    within = abs(difference) <= tolerance
    unit = "points" if pair.kind != "relative" else "%"
    why = pair.reason if within else f"differs by {100 * difference:+.2f} {unit}, allowed are {100 * tolerance:.2f}"
    seeds = tuple(sorted(int(row["seed"]) for row in matched))
    return Meeting(rows, "within tolerance" if within else "off", why, difference, tolerance, seeds)


def _refusal(cell: Measured, row: Values, pair: Pair | None) -> str:
    """Why the two may not be compared, or nothing."""
    if reason := flagged(row):
        return reason
    if pair is None and row["metric"] != cell.values["metric"]:
        return f"the metrics differ: ours {cell.values['metric']}, reported {row['metric']}"
    if pair is None:
        return f"no pair of protocols: ours {cell.values['protocol']}, reported {row['protocol']}"
    if pair.kind == "refused":
        return pair.reason
    if pd.isna(row["value"]):
        return f"no number is printed ({row['note']})"
    if math.isnan(cell.mean):
        return "ours is not finite"
    return ""


def _differ(cell: Measured, value: float, row: Values, pair: Pair) -> tuple[float, float]:
    """Difference and tolerance; half a unit of the last printed digit is always allowed."""
    known = float(row["value"])
    rounding = 0.0 if pd.isna(row["digits"]) else 0.5 * 10.0 ** -row["digits"]
    if pair.kind == "relative":
        return (value - known) / known, pair.tolerance + rounding / known
    if pair.kind == "absolute":
        return value - known, pair.tolerance + rounding
    ours = cell.stderr if cell.stderr > 0 else _binomial(value, cell.samples)
    theirs = _binomial(known, cell.samples) if cell.samples > 1 else ours
    return value - known, pair.tolerance * math.hypot(ours, theirs) + rounding


def _binomial(value: float, samples: float) -> float:
    """The standard error of an accuracy over so many items."""
    return math.sqrt(max(value * (1 - value), 0.0) / samples) if samples > 0 else 0.0


def _excess(difference: float, tolerance: float) -> float:
    return abs(difference) / tolerance if tolerance else math.inf


def _row(cell: Measured, meetings: Sequence[Meeting], gate: str) -> dict[str, Any]:
    """One row of the answer."""
    values = [value for value in cell.by_seed.values() if not math.isnan(value)]
    row = dict(cell.values) | {
        "ours": fmean(values) if values else math.nan,
        "sd": stdev(values) if len(values) > 1 else math.nan,
        "n": len(cell.by_seed),
        "achieved": fmean(achieved for achieved, _ in cell.zeros) if cell.zeros else math.nan,
        # nothing is asked where no method prunes
        "missed": max((abs(one - asked) for one, asked in cell.zeros if is_pruned(cell.values)), default=0.0),
    }
    if not meetings:
        return row | _nothing("missing", "no reported number")
    best = meetings[0]
    row |= _cited(best.rows, best.reported) | {
        "seeds": ",".join(map(str, best.seeds)),
        "difference": best.difference,
        "tolerance": best.tolerance,
        "verdict": best.verdict,
        "why": best.why,
        "also": "; ".join(map(str, meetings[1:])),
    }
    if gate and best.verdict != "not comparable":
        row |= {"verdict": "not comparable", "why": gate}
    return row


def _cited(rows: Sequence[Values], value: float) -> dict[str, Any]:
    return {"reported": value, "paper": rows[0]["paper"], "table": rows[0]["table"]}


def _nothing(verdict: Verdict, why: str) -> dict[str, Any]:
    empty = dict.fromkeys(("reported", "difference", "tolerance"), math.nan)
    return empty | dict.fromkeys(("paper", "table", "seeds", "also"), "") | {"verdict": verdict, "why": why}


def _unmeasured(
    located: Iterable[tuple[dict[str, Any], Values]],
    tasks: Sequence[tuple[str, str]],
    table: Reported,
    measured: set[tuple[str, tuple[Any, ...]]],
) -> list[dict[str, Any]]:
    """Points of the study without a measure: a row per task of the study, or one row."""
    points: dict[tuple[Any, ...], tuple[dict[str, Any], Values]] = {}
    for point, row in located:
        if not point["protocol"] and (point["study"], table.key(point)) not in measured:
            points.setdefault(tuple(point.values()), (point, row))
    answer = []
    columns: Sequence[tuple[str | None, str | None]] = tasks or [(None, None)]
    for point, row in points.values():
        state = str(row.get("status", ""))
        reason = "" if pd.isna(row.get("reason")) else str(row["reason"])
        outcome = {"done": "not measured"}.get(state, "not run" if state in ("", "to do", "missing") else state)
        why = ": ".join(part for part in (outcome, reason) if part)
        for task, metric in columns:
            values = point | {"task": task, "metric": metric, "protocol": None, "state": state}
            answer.append(_absent(values, table, why))
    return answer


def _absent(values: dict[str, Any], table: Reported, why: str) -> dict[str, Any]:
    """A row without a number of ours, with the reported one where there is one."""
    row = values | ABSENT | _nothing("missing", why)
    candidates = table.candidates(values) if values["task"] else []
    if candidates:
        row |= _cited(candidates[0], fmean(one["value"] for one in candidates[0]))
        row["also"] = "; ".join(
            f"{rows[0]['paper']} {rows[0]['table']}: {rows[0]['value']:g}" for rows in candidates[1:]
        )
    return row


def _not_planned(
    expected: pd.DataFrame, table: Reported, known: set[tuple[Any, ...]], study: Values
) -> list[dict[str, Any]]:
    """Reported numbers that the study should reproduce and has no point for."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in expected.to_dict("records"):
        if table.key(_point(row, table.axes)) in known:
            continue
        values = dict.fromkeys(("study", "scale", "variant", *table.axes), "") | {
            name: row[name] for name in (*JOIN, "task", "metric")
        }
        values |= {"protocol": None, "state": "missing"}
        rows.setdefault(tuple(values.values()), _absent(values, table, "not run: the study has no such point"))
    return list(rows.values())
