"""Models that a planner cut, beside dense and pruned ones: told apart, compared with the right ones, counted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.record.schema import Record
from harness.report.compare import compare
from harness.report.outputs import Subject, write_outputs
from harness.report.reported import load_dense, load_pairs, load_reported
from harness.report.tables import lay_out
from harness.report.tidy import Cell, tidy

LAYOUT = {"rows": ["method", "sparsity"], "columns": "task"}
DENSE = 10_000_000


def cell(value: float, model: int = DENSE, sizes: Mapping[str, int | None] | None = None, **axes: Any) -> Cell:
    chosen = {"model": "tiny-7b", "method": "none", "sparsity": 0.5} | {
        k.replace("_", ".", 1): v for k, v in axes.items()
    }
    measure = {
        "task": "wikitext2", "metric": "perplexity", "value": value, "stderr": None, "samples": 9, "protocol": "p",
    }  # fmt: skip
    config = {kind: {"name": chosen.get(kind, "none")} for kind in ("model", "method", "planner", "recovery")}
    counted = {"dense": DENSE, "model": model, "active": model, "saved": None, **(sizes or {})}
    record = Record(
        "ok", "", "f", config, measures=(measure,), parameters=counted, provenance={"hardware": {"threads": 2}}
    )
    return Cell(chosen, record, "done", "")


CELLS = [
    cell(5.0),
    cell(7.0, 9_000_000, planner="block_influence", planner_amount=1),
    cell(9.0, 8_000_000, planner="block_influence", planner_amount=2),
    cell(6.0, method="wanda", planner="none"),
    cell(8.0, 9_000_000, method="wanda", planner="block_influence", planner_amount=1),
]


def table(cells: list[Cell], **layout: Any) -> pd.DataFrame:
    asked = LAYOUT | layout
    measured = tidy("s", "paper", cells, asked)
    compared = compare(measured, load_reported(), load_pairs(), load_dense(), [("wikitext2", "perplexity")])
    return lay_out(measured, compared, asked)


def test_plans_are_told_apart_and_counted() -> None:
    """Each is a row of its own; the share of the dense model's parameters stands beside it."""
    found = table(CELLS)
    by_place = {(row["method"], row["planner"], row["planner.amount"]): row for _, row in found.iterrows()}
    assert {place: row["wikitext2"] for place, row in by_place.items()} == {
        ("none", "", ""): "5.00",
        ("none", "block_influence", "1"): "7.00",
        ("none", "block_influence", "2"): "9.00",
        ("wanda", "", ""): "6.00",
        ("wanda", "block_influence", "1"): "8.00",
    }
    assert by_place["none", "block_influence", "2"]["parameters"] == "8.00 M (80.0%)"
    assert by_place["none", "", ""]["parameters"] == "10.00 M (100.0%)"


def test_a_plan_that_is_no_axis_is_told_apart_too() -> None:
    """Records of one folder, of which only their configurations say that a planner was there."""
    cells = [Cell({"model": "tiny-7b", "method": one.axes["method"]}, one.record, "done", "") for one in CELLS[:2]]
    assert list(table(cells)["planner"]) == ["", "block_influence"]


def test_tables_without_plans_have_no_such_columns() -> None:
    plain = [CELLS[0], cell(6.0, method="wanda")]
    assert not {"parameters", "planner"} & set(table(plain))
    assert list(table(plain, parameters=True)["parameters"]) == ["10.00 M (100.0%)"] * 2


def test_only_the_dense_model_is_drawn_as_one(tmp_path: Path) -> None:
    """A model that was cut has a bar; it is not a second grey line."""
    subject = Subject("s", "paper", "Depth", LAYOUT, ("wikitext2",))
    write_outputs(subject, CELLS[:3], tmp_path / "out")
    svg = (tmp_path / "out" / "figure.svg").read_text()
    assert svg.count("stroke-dasharray") == 2  # the line, and its entry in the legend


@pytest.mark.parametrize("planner", ["none", ""])
def test_a_plan_that_changes_nothing_is_dense(planner: str) -> None:
    measured = tidy("s", "paper", [cell(5.0, planner=planner or "none"), CELLS[1]], LAYOUT)
    assert list(measured["pattern"]) == ["dense", "dense"] and list(measured["planner"]) == ["", "block_influence"]


def test_other_sizes_are_columns_where_they_are_asked_for() -> None:
    """In their units; a range where cells of a row differ, nothing where a record is from before they were counted."""
    small = {"macs": 1_500_000_000, "kv_bytes": 768, "disk_bytes": 18_000_000}
    cells = [cell(5.0), cell(7.0, 9_000_000, small, planner="block_influence")]
    found = table(cells, macs=True, kv_bytes=True, disk_bytes=True)
    assert list(found.columns)[2:6] == ["parameters", "macs", "kv_bytes", "disk_bytes"]
    assert found[["macs", "kv_bytes", "disk_bytes"]].to_numpy().tolist() == [["", "", ""], ["1.50 G", "768 B", "18 MB"]]
    assert not {"macs", "kv_bytes", "disk_bytes"} & set(table(cells).columns)
