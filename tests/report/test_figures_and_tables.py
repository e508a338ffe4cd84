"""What people look at: bars and curves are drawn from the numbers, cells say what is missing and why."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.report.bars import MOST_STANDING, bars
from harness.report.compare import COLUMNS
from harness.report.figures import draw
from harness.report.numbers import number
from harness.report.style import Drawing
from harness.report.tables import comparison_text, lay_out, to_latex, to_markdown


def cells(metric: str) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for method, sparsity, pattern in (("none", 0.0, "dense"), ("wanda", 0.5, "unstructured"), ("wanda", 0.5, "2of4")):
        for task, value in (("boolq", 0.5), ("rte", 0.7)):
            row: dict[str, Any] = dict.fromkeys(COLUMNS, "") | {
                "model": "m",
                "method": method,
                "allocator": "uniform",
                "scope": "all",
            }
            row |= {"sparsity": sparsity, "pattern": pattern, "task": task, "metric": metric, "state": "done"}
            rows.append(
                row
                | {"achieved": math.nan, "missed": 0.0}
                | {"ours": value - sparsity / 10, "sd": math.nan, "n": 1, "reported": math.nan, "difference": math.nan}
            )
    frame = pd.DataFrame(rows)
    frame.loc[1, ["reported", "verdict", "difference"]] = [0.69, "within tolerance", 0.01]
    frame.loc[2, ["ours", "sd", "n"]] = [0.4512, 0.01, 3]
    frame.loc[5, ["ours", "state"]] = [math.nan, "skipped"]
    return frame.assign(verdict=frame["verdict"].replace("", "missing"))


@pytest.mark.parametrize(("metric", "figure"), [("acc", "bars"), ("perplexity", "bars"), ("perplexity", "curves")])
def test_a_figure_is_drawn_with_its_numbers(metric: str, figure: str, tmp_path: Path) -> None:
    compared = cells(metric)
    draw(compared, {"metric": metric, "figure": figure}, "A title", "embedded", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"figure.svg", "figure.png", "figure.csv"}
    assert len(pd.read_csv(tmp_path / "figure.csv")) == 5
    again = tmp_path / "again"
    again.mkdir()
    draw(compared, {"metric": metric, "figure": figure}, "A title", "embedded", again)
    assert (again / "figure.svg").read_bytes() == (tmp_path / "figure.svg").read_bytes()


@pytest.mark.parametrize(("count", "lying"), [(MOST_STANDING, False), (MOST_STANDING + 1, True)])
def test_bars_of_many_groups_lie_so_that_their_names_can_be_read(count: int, lying: bool) -> None:
    row = cells("acc").iloc[2].to_dict() | {"task": "boolq", "sd": math.nan}
    rows = [row | {"level": f"{number}of64", "ours": number / 100} for number in range(1, count + 1)]
    figure = bars(Drawing(), pd.DataFrame(rows), "acc")
    (axis,) = figure.axes
    names, lengths = axis.get_yticklabels() if lying else axis.get_xticklabels(), axis.patches
    assert [name.get_text() for name in names] == [f"{number}of64" for number in range(1, count + 1)]
    assert [patch.get_width() if lying else patch.get_height() for patch in lengths] == pytest.approx(
        range(1, count + 1)
    )
    figure.canvas.draw()
    boxes = [name.get_window_extent() for name in names]
    assert not any(one.overlaps(other) for one, other in pairwise(boxes)) or not lying


def test_without_pruned_cells_only_the_numbers_are_written(tmp_path: Path) -> None:
    dense = cells("acc").iloc[:2]
    draw(dense, {"metric": "acc", "figure": "bars"}, "A title", "embedded", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["figure.csv"]


def test_a_task_that_only_the_dense_model_has_a_value_of_is_an_empty_panel(tmp_path: Path) -> None:
    compared = cells("acc")
    compared.loc[(compared["task"] == "rte") & (compared["method"] != "none"), "ours"] = math.nan
    draw(compared, {"metric": "acc", "figure": "bars"}, "A title", "embedded", tmp_path)
    assert (tmp_path / "figure.png").is_file()


def test_a_table_shows_means_spreads_verdicts_and_what_is_absent() -> None:
    compared = cells("acc")
    table = lay_out(compared, compared, {"rows": ["model", "sparsity", "method"], "metric": "acc"})
    assert list(table.columns) == ["model", "sparsity", "method", "boolq", "rte"]
    assert list(table["sparsity"]) == ["0", "0.5", "2of4"] or list(table["sparsity"]) == ["0", "2of4", "0.5"]
    dense, free, fixed = (table[table["sparsity"] == level].iloc[0] for level in ("0", "0.5", "2of4"))
    assert dense["rte"] == "70.00 (69.00 ✓)"
    assert free["boolq"] == "45.12 ± 1.00"
    assert fixed["rte"] == "skipped"
    markdown = to_markdown(table, "A title", "embedded", compared)
    assert "### A title · scale embedded" in markdown
    assert "1 within tolerance" in markdown
    latex = to_latex(table, "50 % of_it", "embedded", compared)
    assert r"50 \% of\_it" in latex
    assert r"$\checkmark$" in latex
    assert "within tolerance" in comparison_text(compared)


def test_numbers_are_readable() -> None:
    assert [number(value, "perplexity") for value in (5.468, 1234.5, 2.5e6)] == ["5.47", "1234", "2.50e+06"]
    assert number(0.5999, "acc") == "59.99"
