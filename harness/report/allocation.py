"""An allocation for people: what is asked of every block and kind of matrix, as a table, bars and numbers.

All functions take the content of an `allocation.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from harness.report.diagnostics import in_block
from harness.report.files import write_csv, write_text
from harness.report.style import COLOURS, Drawing, save
from harness.report.tables import markdown_lines
from harness.runtime import escape
from harness.runtime.errors import UserError

LEGEND = "The fraction of zeros that is asked for; NofM keeps N of every M weights."
WEIGHTED, UNWEIGHTED = "Means are weighted by parameters.", "Means are not weighted: no sizes are known."
PANELS = {"block": COLOURS[0], "kind": COLOURS[2]}
MOST_NUMBERS = 16
"""More bars than this are thin, and their numbers stand upright."""


def by_site(content: Mapping[str, Any]) -> pd.DataFrame:
    """A row per matrix: site, block, kind (its name within the block), asked, pattern, parameters."""
    rows = [(site, *in_block(site), facts["asked"], facts["pattern"]) for site, facts in content["sites"].items()]
    frame = pd.DataFrame(rows, columns=["site", "block", "kind", "asked", "pattern"])
    return frame.assign(parameters=[facts["parameters"] for facts in content["sites"].values()])


def to_markdown(content: Mapping[str, Any]) -> str:
    """Blocks as rows, kinds of matrices as columns, means at the end of both."""
    frame = by_site(content)
    kinds = list(dict.fromkeys(frame["kind"]))
    rows = [[_name(block), *_row(here, kinds)] for block, here in frame.groupby("block", sort=False, dropna=False)]
    rows.append(["mean", *(_number(mean(frame[frame["kind"] == kind])) for kind in kinds), _number(mean(frame))])
    table = pd.DataFrame(rows, columns=["block", *kinds, "mean"])
    means = WEIGHTED if frame["parameters"].notna().all() else UNWEIGHTED
    return "\n".join(
        [f"### {escape.markdown(_title(content))}", "", *markdown_lines(table), "", f"{LEGEND} {means}", ""]
    )


def write(content: Mapping[str, Any], folder: Path) -> None:
    """Write allocation.{json,csv,md,svg,png}.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(json.dumps(content, indent=1) + "\n", folder / "allocation.json")
        write_text(to_markdown(content), folder / "allocation.md")
        write_csv(by_site(content), folder / "allocation.csv")
        save(bars(Drawing(), content), _title(content), folder, "allocation")
    except OSError as error:
        raise UserError(f"the allocation cannot be written to {folder}: {error.strerror}.") from error


def bars(plt: Drawing, content: Mapping[str, Any]) -> Any:
    """The mean of every block, and beside it that of every kind of matrix; a dashed line is the mean of all."""
    frame = by_site(content)
    panels = {
        by: {_name(key): mean(here) for key, here in frame.groupby(by, sort=False, dropna=False)} for by in PANELS
    }
    widths = [0.8 + max((0.3 if len(panel) <= MOST_NUMBERS else 0.15) * len(panel), 1.4) for panel in panels.values()]
    shape: dict[str, Any] = {"figsize": (sum(widths), 3.2), "width_ratios": widths}
    figure, axes = plt.subplots(1, len(panels), **shape, sharey=True, layout="constrained")
    for (by, panel), axis in zip(panels.items(), axes, strict=True):
        axis.axhline(mean(frame), color="0.5", linestyle="--", linewidth=1, zorder=1)
        _panel(axis, panel, PANELS[by])
        axis.set_xlabel(by.replace("kind", "kind of matrix"), fontsize=8)
    axes[1].tick_params(axis="x", labelrotation=45)
    axes[0].set_ylabel("sparsity asked for", fontsize=8)
    axes[0].set_ylim(0, 1.12)
    axes[0].set_yticks([0, 0.25, 0.5, 0.75, 1])
    return figure


def _panel(axis: Any, panel: Mapping[str, float], colour: str) -> None:
    many = len(panel) > MOST_NUMBERS
    drawn = axis.bar(range(len(panel)), list(panel.values()), 0.75, color=colour, zorder=2)
    numbers = [f"{value:.2f}".removeprefix("0") for value in panel.values()]
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    axis.bar_label(drawn, numbers, fontsize=6, padding=2, rotation=90 if many else 0, bbox=behind)
    named = list(enumerate(panel))[:: 1 if len(panel) <= 2 * MOST_NUMBERS else 5]
    axis.set_xticks([place for place, _ in named], [escape.figure(name) for _, name in named])
    axis.set_xlim(-0.7, len(panel) - 0.3)
    axis.tick_params(labelsize=7)
    axis.grid(axis="y", alpha=0.3, linewidth=0.4, zorder=0)


def mean(frame: pd.DataFrame) -> float:
    """The parameter-weighted mean that is asked for; unweighted where the sizes are not known."""
    weights = frame["parameters"] if frame["parameters"].notna().all() else frame["asked"] * 0 + 1
    return float((frame["asked"] * weights).sum() / weights.sum())


def _row(block: pd.DataFrame, kinds: list[str]) -> list[str]:
    """The cells of a block and its mean; several matrices of one kind (experts) show their mean."""
    cells = []
    for kind in kinds:
        here = block[block["kind"] == kind]
        patterns = set(here["pattern"]) - {"unstructured"}
        cells.append("" if here.empty else patterns.pop() if len(patterns) == 1 else _number(mean(here)))
    return [*cells, _number(mean(block))]


def _number(value: float) -> str:
    return f"{value:.3f}"


def _name(block: Any) -> str:
    return "—" if pd.isna(block) else str(block if isinstance(block, str) else int(block))


def _title(content: Mapping[str, Any]) -> str:
    return f"Allocation{' of ' + content['model'] if content['model'] else ''}: {content['sparsity']:.4f} zeros"
