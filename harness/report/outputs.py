"""Everything a study shows, in one folder: table.{csv,md,tex}, figure.{svg,png,csv}, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from harness.record.dense import NONE
from harness.record.schema import DENSE_INPUTS
from harness.report import ratios
from harness.report.compare import SIZES, compare
from harness.report.derived import FIRST_TASK, mean_name
from harness.report.figures import draw
from harness.report.files import write_csv, write_text
from harness.report.layout import metric_of
from harness.report.ranking_outputs import write_ranking
from harness.report.reported import load_dense, load_pairs, load_reported, of_tables
from harness.report.tables import comparison_text, lay_out, to_latex, to_markdown
from harness.report.tidy import Cell, tidy
from harness.runtime.errors import UserError
from harness.runtime.files import staged

AGAIN = "run the points again with one setting"
CHOOSE = "choose among the runs by their options, as in evaluation_limit=null or model.window=512"


@dataclass(frozen=True)
class Subject:
    """Subject of a report: a study at a scale, the tasks it measures, the printed tables that it reproduces."""

    study: str
    scale: str
    title: str
    layout: Mapping[str, Any]
    tasks: tuple[str, ...] = ()
    reproduces: Mapping[str, Any] = field(default_factory=dict)

    def columns(self, measured: pd.DataFrame) -> list[tuple[str, str]]:
        """(task, metric) of everything that each point is measured by."""
        metric = metric_of(self.layout)
        if metric in FIRST_TASK:
            found = dict.fromkeys(measured.loc[measured["metric"] == metric, "task"])
            return [(task, metric) for task in found or [FIRST_TASK[metric]]]
        means = [mean_name(self.tasks)] if self.layout.get("mean") and len(self.tasks) > 1 else []
        return [(task, metric) for task in [*self.tasks, *means]]


@dataclass(frozen=True)
class Outputs:
    """Files written, and the texts that are printed."""

    folder: Path
    markdown: str
    comparison_markdown: str
    tables: Mapping[str, pd.DataFrame]


def write_outputs(subject: Subject, cells: Sequence[Cell], folder: Path) -> Outputs:
    """Tables and figure of a study at a scale, from its records alone.

    Raises:
        UserError: the records measure one task by unlike protocols, or the folder cannot be written.
    """
    measured, compared, table = lay(subject, cells)
    markdown = to_markdown(table, subject.title, subject.scale, compared)
    try:
        with staged(folder) as stage:
            numbers = compared.drop(columns=["missed", *SIZES])
            write_csv(numbers, stage / "table.csv")
            write_text(markdown, stage / "table.md")
            write_text(to_latex(table, subject.title, subject.scale, compared), stage / "table.tex")
            draw(numbers, subject.layout, subject.title, subject.scale, stage, cells)
            against = ratios.ratios(measured, cells)
            if not against.empty:
                write_csv(against, stage / "ratios.csv")
                write_text(ratios.to_markdown(against, subject.title, subject.scale), stage / "ratios.md")
            if subject.layout.get("ranking"):
                write_ranking(measured, cells, subject.layout, subject.title, subject.scale, stage)
    except OSError as error:
        raise UserError(f"the tables cannot be written to {folder}: {error.strerror}.") from error
    return Outputs(folder, markdown, comparison_text(compared), {"table": numbers})


class Shown(NamedTuple):
    """A row per measure, a row per cell beside the reported number, and the table as it is printed."""

    measured: pd.DataFrame
    compared: pd.DataFrame
    table: pd.DataFrame


def lay(subject: Subject, cells: Sequence[Cell]) -> Shown:
    """The numbers of cells and their table, from records alone.

    Raises:
        UserError: the records measure one task by unlike protocols.
    """
    measured = tidy(subject.study, subject.scale, cells, subject.layout)
    refuse_unlike(measured, AGAIN if subject.study else CHOOSE)
    reported = load_reported()
    # other scales run other models: nothing that a paper prints is expected of them
    expected = of_tables(reported, **subject.reproduces) if subject.reproduces and subject.scale == "paper" else None
    compared = compare(measured, reported, load_pairs(), load_dense(), subject.columns(measured), expected)
    return Shown(measured, compared, lay_out(measured, compared, subject.layout))


def refuse_unlike(measured: pd.DataFrame, instead: str = AGAIN) -> None:
    """A table puts only measures of one protocol side by side.

    Models calibrated on dense inputs stand beside others only where the axis `inputs` tells them apart, or beside a
    dense one, which was not calibrated.

    Raises:
        UserError: a task and metric of one model was measured by two protocols.
    """
    done = measured.dropna(subset=["protocol"])
    told_apart = ["inputs"] if "inputs" in done else []
    for (model, task, metric, *_), here in done.groupby(["model", "task", "metric", *told_apart]):
        known = here["protocol"]
        marked = here.loc[here["method"] != NONE, "protocol"].str.contains(DENSE_INPUTS, regex=False)
        if known.str.replace(DENSE_INPUTS, "", regex=False).nunique() > 1 or marked.nunique() > 1:
            raise UserError(
                f"{model} {task} {metric} was measured by unlike protocols ({', '.join(sorted(set(known)))}), "
                f"which no table puts side by side; {instead}."
            )
