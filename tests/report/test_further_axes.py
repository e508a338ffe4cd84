"""Axes beyond model, method and sparsity: from cells to columns, kept apart, laid out; what follows from a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from harness.runtime.errors import UserError

CPU = {"device": "cpu", "threads": 2}


def cell(value: float | None = None, state: str = "done", record: Mapping[str, Any] | None = None, **axes: Any) -> Cell:
    """A cell of SparseGPT at 70 % on a made-up model; `method_alpha=1` stands for the axis `method.alpha`."""
    chosen = {"model": "tiny-7b", "method": "sparsegpt", "sparsity": 0.7}
    chosen |= {key.replace("_", ".", 1): item for key, item in axes.items()}
    measures = [
        {"task": task, "metric": "perplexity", "value": value * factor, "stderr": None, "samples": 9, "protocol": task}
        for task, factor in (("wikitext2", 1), ("ptb", 2))
        if value is not None
    ]
    facts = {"measures": tuple(measures), "provenance": {"hardware": CPU}} | dict(record or {})
    config = {"model": {"name": chosen["model"]}, "method": {"name": chosen["method"]}}
    return Cell(chosen, Record("ok", "", "f", config, **facts) if state == "done" else None, state, "")


def compared(cells: Sequence[Cell], layout: Mapping[str, Any]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tidy frame of a study of two texts, and its comparison with what papers print."""
    measured = tidy("sparsellm_ablation", "paper", cells, layout)
    columns = [(task, "perplexity") for task in ("wikitext2", "ptb")]
    return measured, compare(measured, load_reported(), load_pairs(), load_dense(), columns)


def table(cells: Sequence[Cell], **layout: Any) -> pd.DataFrame:
    measured, rows = compared(cells, layout)
    return lay_out(measured, rows, layout)


def grid() -> list[Cell]:
    cells = [cell(5.0, method="none"), cell(20.0)]
    return cells + [
        cell(10.0 + alpha + beta / 100, method="sparsellm", method_alpha=alpha, method_beta=beta, method_gamma=1)
        for alpha in (100, 0.1, 5)
        for beta in (0.1, 10)
    ]


def test_every_axis_of_the_study_is_a_column_and_empty_where_it_does_not_matter() -> None:
    cells = [
        cell(1.0, method="none", calibration_windows=8),
        cell(1.0, calibration_windows=16),
        cell(1.0, method="sparsellm", method_gamma=None, method_inner={"name": "wanda"}, method_variant="released"),
        cell(state="to do", method="sparsellm", method_variant="default", method_fallback=True),
    ]
    frame = tidy("s", "paper", cells, {})
    frame = frame[frame["task"] != "ptb"]
    assert list(frame["calibration.windows"]) == ["", 16, "", ""]
    assert list(frame["method.gamma"]) == ["", "", "null", ""]
    assert list(frame["method.inner"]) == ["", "", "wanda", ""]
    assert list(frame["method.fallback"]) == ["", "", "", "true"]
    assert list(frame["variant"]) == ["", "", "released", "default"]


def test_seeds_are_averaged_within_each_value_of_an_axis() -> None:
    cells = [cell(windows + seed, calibration_windows=windows, seed=seed) for windows in (8, 16) for seed in (0, 1, 2)]
    _, rows = compared(cells, {})
    rows = rows[rows["task"] == "wikitext2"]
    assert list(zip(rows["calibration.windows"], rows["ours"], rows["sd"], rows["n"], strict=True)) == [
        (8, 9.0, 1.0, 3),
        (16, 17.0, 1.0, 3),
    ]


def test_a_reported_number_meets_the_reference_only() -> None:
    """Wanda's LLaMA-7B at 50 % is printed, with 128 windows and no word of others."""
    wanda = {"model": "llama-7b", "method": "wanda", "sparsity": 0.5}
    _, rows = compared([cell(7.3, **wanda), cell(7.3, **wanda, calibration_windows=8)], {})
    reference, other = rows[rows["task"] == "wikitext2"].to_dict("records")
    assert reference["reported"] == pytest.approx(7.26)
    assert (other["verdict"], other["why"]) == ("missing", "no reported number")


def test_a_point_to_do_is_not_hidden_by_another_value_of_the_axis() -> None:
    shown = table(
        [cell(9.0, calibration_windows=8), cell(state="to do", calibration_windows=16)],
        rows=["model", "calibration.windows"],
    )
    assert shown.to_numpy().tolist() == [["tiny-7b", "8", "9.00", "18.00"], ["tiny-7b", "16", "—", "—"]]


def test_an_axis_of_numbers_as_rows_and_columns_with_references_beside_it() -> None:
    shown = table(grid(), rows=["model", "task", "method.alpha"], columns="method.beta")
    assert list(shown.columns) == ["model", "task", "method.alpha", "dense", "sparsegpt", "0.1", "10"]
    here = shown[shown["task"] == "wikitext2"].drop(columns=["model", "task"])
    assert here.iloc[0].tolist() == ["", "5.00", "20.00", "", ""]
    assert here.iloc[1:].to_numpy().tolist() == [
        ["0.1", "", "", "10.10", "10.20"],
        ["5", "", "", "15.00", "15.10"],
        ["100", "", "", "110.00", "110.10"],
    ]


def test_an_axis_that_the_layout_forgets_becomes_a_column_of_the_index() -> None:
    shown = table(grid(), rows=["method", "method.alpha"])
    assert list(shown.columns) == ["method", "method.alpha", "method.beta", "wikitext2", "ptb"]
    assert len(shown) == 8  # one value of gamma tells nothing apart


def test_sparsity_and_method_may_be_columns() -> None:
    shown = table([cell(5.0, method="none"), cell(9.0), cell(30.0, sparsity="1of4")], rows=["task"], columns="sparsity")
    assert list(shown.columns) == ["task", "0", "0.7", "1of4"]
    shown = table([cell(9.0), cell(5.0, method="none")], rows=["model", "task"], columns="method")
    assert list(shown.columns) == ["model", "task", "none", "sparsegpt"]


def outputs(cells: Sequence[Cell], folder: Path, **layout: Any) -> list[str]:
    """The written Markdown, line by line, of a study of the layout."""
    write_outputs(Subject("sparsellm_time", "proxy", "A title", layout), cells, folder)
    return (folder / "table.md").read_text().splitlines()


def timed(seconds: float, hardware: Mapping[str, Any] = CPU, **axes: Any) -> Cell:
    record = {"stages": {"prune": {"seconds": seconds, "peak_bytes": 1}}, "provenance": {"hardware": hardware}}
    return cell(5.0, record=record, **axes)


def test_seconds_of_pruning_are_measures_only_where_the_table_asks(tmp_path: Path) -> None:
    assert "seconds" not in set(tidy("s", "proxy", [timed(3.0)], {})["metric"])
    cells = [timed(1.0, seed=0), timed(2.0, seed=1), cell(state="to do", method="wanda"), cell(5.0, method="none")]
    lines = outputs(cells, tmp_path, metric="seconds", rows=["model", "method"], figure="bars")
    assert "| model   | method    | prune (s)   |" in lines
    assert "| tiny-7b | sparsegpt | 1.50 ± 0.71 |" in lines
    assert "| tiny-7b | wanda     | —           |" in lines
    assert "Seconds on 2 CPU threads." in lines
    assert len(pd.read_csv(tmp_path / "figure.csv")) == 1


def test_seconds_of_two_machines_never_stand_side_by_side(tmp_path: Path) -> None:
    cells = [timed(1.0), timed(2.0, {"device": "cuda", "threads": 2, "gpu": "H200"}, method="wanda")]
    with pytest.raises(UserError, match=r"unlike protocols \(2 CPU threads, H200\)"):
        outputs(cells, tmp_path, metric="seconds", rows=["model", "method"])


LOSSES = {"0": {"loss": [9.0, 8.0]}, "10": {"loss": [0.5, 0.123456, None], "fallback": False}, "9": {"loss": [1.0]}}


@pytest.mark.parametrize(
    ("block", "told", "of"),
    [("last", ["0.5", "0.123", "not finite"], "10"), (9, ["1"], "9"), (3, ["not measured"], "")],
)
def test_the_loss_of_a_block_after_every_epoch(block: Any, told: list[str], of: str, tmp_path: Path) -> None:
    cells = [cell(record={"blocks": LOSSES}, method="sparsellm"), cell(state="to do")]
    protocols = set(tidy("s", "proxy", cells, {"metric": "loss", "block": block})["protocol"].dropna())
    assert protocols == ({f"training loss of block {of}"} if of else set())
    lines = outputs(cells, tmp_path, metric="loss", block=block, rows=["method"], figure="losses")
    row = next(line for line in lines if line.startswith("| sparsellm"))
    assert [text.strip() for text in row.strip("| ").split("|")][1:] == told
    assert any(line.startswith("| sparsegpt | —") for line in lines)
