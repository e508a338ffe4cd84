"""The table of `authors_oneshot`: means, spread, and an interval of their difference beside a limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, variance
from typing import Any

from benchmarks.speed.common import write
from harness.report.interval import t_quantile

LIMITS = {"ria": 0.002, "dsnot": 0.002, "thanos": 0.002, "alps": 0.01, "admm": 0.01}
"""How far the perplexities of the two sides may lie apart."""
TEXTS = {"wikitext2": "WikiText-2", "ptb": "PTB"}
HEADING = (
    "| model | method | at | text | runs | ours, mean (range) | theirs, mean (range) | difference, %"
    " | 95 % interval | verdict | first block: masks apart | theirs moved | all blocks | of inputs never seen |"
)
ABOUT = (
    "both sides on the same {windows} windows of 512 tokens of the C4 sample, seed 0, float32{limit}. Run 0 has the"
    " windows as drawn, the others permuted. The interval is Welch's, of the difference of the means over the mean of"
    " theirs. *Within* says that it lies inside the limit (0.2 % for ria, dsnot, thanos; 1 % for alps, admm), *apart*"
    " that it lies outside, *open* that it does neither. Masks apart: share of the weights of the first block that one"
    " side alone has at zero, of the same run, median (most); moved: where the authors' code differs from its run 0."
    " All blocks: weights that one side alone has at zero in the whole model, the most of the runs, and those of them"
    " that belong to inputs which are zero on all windows, where scores tie."
)


def table(lines: Sequence[dict[str, Any]]) -> None:
    """Write `results/bench/authors_oneshot.md` from the lines of a results file, which lie beside it as JSON."""
    points: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for line in lines:
        points.setdefault((line["model"], line["method"], line["setting"]), []).append(line)
    kinds = {(line["windows"], line["limit"]) for line in lines}
    if len(kinds) != 1:
        raise SystemExit(f"the lines are of {len(kinds)} kinds (calibration windows, evaluated windows): {kinds}")
    windows, limit = kinds.pop()
    where = "; ".join(sorted({line["where"] for line in lines}))
    about = ABOUT.format(windows=windows, limit=f", {limit} windows of each text" if limit else "")
    rows = [row for point in sorted(points) for row in rows_of(point, points[point])]
    write("authors_oneshot", "One-shot methods beside their authors' codes", about,
          [HEADING, "|---" * 14 + "|", *rows], {"runs": list(lines)}, where)  # fmt: skip


def rows_of(point: tuple[str, str, str], lines: Sequence[dict[str, Any]]) -> list[str]:
    """A row for each text."""
    runs = {(line["side"], line["number"]): line for line in lines}
    numbers = sorted({number for _, number in runs})
    apart = [share(runs["ours", number]["apart"], runs["ours", number]["weights"]) for number in numbers]
    moved = [share(runs["ours", number]["moved"], runs["ours", number]["weights"]) for number in numbers if number]
    total = {key: str(max(runs["ours", number][key] for number in numbers)) for key in ("all", "unseen")}
    rows = []
    for text, title in TEXTS.items():
        ours, theirs = ([runs[side, number][text] for number in numbers] for side in ("ours", "theirs"))
        difference, low, high = compared(ours, theirs)
        limit = LIMITS[point[1]]
        cells = (
            *point, title, str(len(numbers)), spread(ours), spread(theirs), f"{100 * difference:+.3f}",
            f"{100 * low:+.3f} … {100 * high:+.3f}", verdict(low, high, limit), shares(apart), shares(moved),
            total["all"], total["unseen"],
        )  # fmt: skip
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def compared(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """The difference of two means over the second, and its 95 % interval (Welch 1947, whole degrees of freedom).

    Without spread, or with one run, the interval is the difference alone.
    """
    scale = fmean(theirs)
    difference = fmean(ours) / scale - 1
    if min(len(ours), len(theirs)) < 2:
        return difference, difference, difference
    errors = [variance(side) / len(side) for side in (ours, theirs)]
    if not sum(errors):
        return difference, difference, difference
    degrees = sum(errors) ** 2 / sum(e**2 / (len(side) - 1) for e, side in zip(errors, (ours, theirs), strict=True))
    half = t_quantile(0.975, max(1, math.floor(degrees))) * math.sqrt(sum(errors)) / scale
    return difference, difference - half, difference + half


def verdict(low: float, high: float, limit: float) -> str:
    """How an interval lies to ±limit."""
    if -limit <= low and high <= limit:
        return "within"
    return "apart" if low > limit or high < -limit else "open"


def share(differing: dict[str, int], weights: dict[str, int]) -> float:
    """Of all weights of the first block."""
    return sum(differing.values()) / sum(weights.values())


def spread(values: Sequence[float]) -> str:
    """The mean with the range."""
    same = min(values) == max(values)
    return f"{fmean(values):.3f}" + ("" if same else f" ({min(values):.3f}–{max(values):.3f})")


def shares(values: Sequence[float]) -> str:
    """The median share with the largest."""
    if not values:
        return "–"
    return f"{sorted(values)[len(values) // 2]:.1e} ({max(values):.1e})" if max(values) else "0"
