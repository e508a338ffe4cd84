"""From cells to written tables: the mean over tasks, and the printed numbers that a study does not reach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.record.schema import Record
from harness.report.derived import WANDA_SEVEN, mean_name
from harness.report.outputs import Subject, write_outputs
from harness.report.tidy import Cell, tidy

VALUES = dict(zip(sorted(WANDA_SEVEN), (0.41, 0.75, 0.72, 0.52, 0.31, 0.55, 0.66), strict=True))
STDERR = 0.014


def scored(values: dict[str, float | None], method: str = "wanda", bos: str = "no-bos") -> Cell:
    """A cell of LLaMA-7B at 50 % whose record has these accuracies."""
    measures: list[dict[str, Any]] = [
        {
            "task": task, "metric": metric, "value": value, "stderr": STDERR, "samples": 1000, "note": "",
            "protocol": f"{task}@lm-eval-{1 + number % 2}.0,0-shot,{bos}#0123456{number}",
        }
        for number, (task, value) in enumerate(values.items())
        for metric in ("acc", "acc_norm")
    ]  # fmt: skip
    axes = {"model": "llama-7b", "method": method, "sparsity": 0.5, "allocator": "uniform", "scope": "all"}
    config = {"model": {"name": "llama-7b"}, "method": {"name": method}}
    return Cell(axes, Record("ok", "", "f", config, measures=tuple(measures)), "done", "")


def mean_rows(cell: Cell) -> pd.DataFrame:
    frame = tidy("wanda_table2", "paper", [cell], {"metric": "acc", "mean": True})
    return frame[frame["task"].str.startswith("mean")]


def test_the_mean_over_tasks_is_a_measure_of_its_own() -> None:
    (row,) = mean_rows(scored(VALUES)).to_dict("records")
    assert (row["task"], row["metric"]) == ("mean7", "acc")
    assert row["value"] == pytest.approx(sum(VALUES.values()) / 7)
    assert row["stderr"] == pytest.approx(STDERR / 7**0.5)  # seven independent errors of one size
    assert row["protocol"].startswith("mean7@lm-eval-1.0+2.0,0-shot,no-bos#")
    other = mean_rows(scored({"boolq": 0.5, "rte": 0.7})).iloc[0]
    assert (other["task"], other["value"]) == ("mean of 2", pytest.approx(0.6))
    assert mean_rows(scored({"boolq": 0.5, "rte": None})).empty  # a mean of what is there would be another number
    assert mean_rows(scored({"boolq": 0.5})).empty


def test_only_the_seven_are_the_papers_mean() -> None:
    assert mean_name(WANDA_SEVEN) == "mean7"
    assert mean_name([*sorted(WANDA_SEVEN)[:6], "piqa"]) == "mean of 7"


@pytest.mark.parametrize(("bos", "verdict"), [("no-bos", "within tolerance"), ("bos", "not comparable")])
def test_the_papers_mean_meets_ours(bos: str, verdict: str, tmp_path: Path) -> None:
    """Wanda's table 2 prints 54.21 for this cell."""
    near = {task: value - sum(VALUES.values()) / 7 + 0.5421 for task, value in VALUES.items()}
    layout = {"columns": "task", "rows": ["model", "sparsity", "method"], "metric": "acc", "mean": True}
    subject = Subject("wanda_table2", "paper", "A title", layout, tuple(VALUES))
    write_outputs(subject, [scored(near, bos=bos)], tmp_path)
    table = pd.read_csv(tmp_path / "table.csv")
    (row,) = table[table["task"] == "mean7"].to_dict("records")
    assert (row["reported"], row["verdict"]) == (0.5421, verdict)
    assert "mean7" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize(("scale", "missing"), [("paper", 70), ("proxy", 1)])
def test_printed_numbers_without_a_point_are_missing_at_paper_scale(scale: str, missing: int, tmp_path: Path) -> None:
    layout = {"columns": "model", "rows": ["sparsity", "method"]}
    tables = {"paper": "Wanda", "tables": ["Table 3"]}
    subject = Subject("wanda_table3", scale, "A title", layout, ("wikitext2",), tables)
    planned = scored({})._replace(record=None, state="to do")
    write_outputs(subject, [planned], tmp_path)
    table = pd.read_csv(tmp_path / "table.csv")
    assert set(table["verdict"]) == {"missing"}
    assert len(table) == missing
