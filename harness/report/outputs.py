"""Everything a study shows, written to one folder: table.{csv,md,tex} and figure.{svg,png,csv}."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from harness.core.errors import UserError
from harness.record.schema import Record
from harness.report.compare import compare
from harness.report.figures import draw
from harness.report.reported import load_dense, load_pairs, load_reported
from harness.report.tables import comparison_text, lay_out, to_latex, to_markdown
from harness.report.tidy import Cell, tidy


@dataclass(frozen=True)
class Outputs:
    """What was written, and the texts that are printed."""

    folder: Path
    markdown: str
    comparison_markdown: str
    tables: Mapping[str, pd.DataFrame]


def write_outputs(
    study: str,
    scale: str,
    title: str,
    layout: Mapping[str, Any],
    cells: Sequence[tuple[Mapping[str, Any], Record | None, str, str]],
    folder: Path,
) -> Outputs:
    """Tables and figure of a study at a scale, from its records alone.

    Raises:
        UserError: the records measure one task by unlike protocols, or the folder cannot be written.
    """
    measured = tidy(study, scale, [Cell(*cell) for cell in cells])
    refuse_unlike(measured)
    compared = compare(measured, load_reported(), load_pairs(), load_dense())
    table = lay_out(measured, compared, layout)
    markdown = to_markdown(table, title, scale, compared)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        compared.to_csv(folder / "table.csv", index=False)
        (folder / "table.md").write_text(markdown)
        (folder / "table.tex").write_text(to_latex(table, title, scale))
        draw(measured, compared, layout, title, scale, folder)
    except OSError as error:
        raise UserError(f"the tables cannot be written to {folder}: {error.strerror}.") from error
    return Outputs(folder, markdown, comparison_text(compared), {"table": compared})


def refuse_unlike(measured: pd.DataFrame) -> None:
    """A table puts only measures of one protocol side by side.

    Raises:
        UserError: a task and metric of one model was measured by two protocols.
    """
    done = measured.dropna(subset=["protocol"])
    for (model, task, metric), known in done.groupby(["model", "task", "metric"])["protocol"]:
        if known.nunique() > 1:
            raise UserError(
                f"{model} {task} {metric} was measured by unlike protocols ({', '.join(sorted(set(known)))}), "
                "which no table puts side by side; run the points again with one setting."
            )
