"""A table of any runs: the options in which they differ, means over seeds, what is missing and why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.core.places import ROOT
from harness.record import schema
from harness.record.schema import Record
from harness.report.axes import differing, options_of
from harness.report.tables import _head

PUBLISHED = ROOT / "results" / "published"


def config(**changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "model": {"name": "tiny", "path": "tiny", "window": 32, "geometry": {"blocks": 2}},
        "method": {"name": "wanda", "group": "row"},
        "allocator": {"name": "uniform"},
        "planner": {"name": "none"},
        "calibration": {"name": "embedded-a", "windows": 8, "seed": changes.get("seed", 0)},
        "evaluation": {"embedded-a": {"name": "perplexity"}},
        **{
            "sparsity": 0.5,
            "scope": "all",
            "seed": 0,
            "scale": "embedded",
            "study": None,
            "records": "results/records",
        },
    }
    return given | changes


def measure(task: str, value: float, metric: str = "perplexity") -> dict[str, Any]:
    known = {"stderr": None, "samples": 2, "note": "", "protocol": f"{task}-test@32#0"}
    return {"task": task, "metric": metric, "value": value, **known}


def write(
    folder: Path, name: str, *measures: dict[str, Any], status: Any = "ok", reason: str = "", **changes: Any
) -> None:
    told = {"status": status, "reason": reason, "measures": measures}
    zeros = {"asked": 0.5, "achieved": 0.5, "model": 0.5} if measures else {}
    schema.write(Record(fingerprint=name, config=config(**changes), sparsity=zeros, **told), folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two methods at two sparsities, two seeds each; one seed failed, one point was refused; and the dense model."""
    folder = tmp_path / "records"
    for at, sparsity in enumerate((0.5, "2of4")):
        for seed in (0, 1):
            value = 10.0 * (at + 1) + seed
            write(folder, f"a{at}{seed}", measure("embedded-a", value), sparsity=sparsity, seed=seed)
    magnitude = {"name": "magnitude", "group": "matrix"}
    write(folder, "b0", measure("embedded-a", 30.0), method=magnitude)
    write(folder, "b1", method=magnitude, seed=1, status="failed", reason="no luck")
    write(folder, "c0", method=magnitude, sparsity="2of4", status="skipped", reason="does not fit")
    write(folder, "d0", measure("embedded-a", 3.0), method={"name": "none"}, sparsity=0.9)
    return folder


def lines(text: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]


def test_the_options_that_differ_are_rows_unless_they_are_named(typed: Callable, folder: Path) -> None:
    done = typed("tables", f"records={folder}")
    assert done.status == 1  # one run has failed
    head, _, dense, *rows = lines(done.out)
    assert head == ["sparsity", "achieved", "method", "embedded-a"]
    assert dense == ["0", "0.5000", "none", "3.00"]
    assert rows == [
        ["0.5", "0.5000", "magnitude", "30.00"],
        ["0.5", "0.5000", "wanda", "10.50 ± 0.71"],  # the standard deviation of 10 and 11
        ["2of4", "", "magnitude", "skipped"],
        ["2of4", "0.5000", "wanda", "20.50 ± 0.71"],
    ]
    assert "1 failed: no luck\n1 skipped: does not fit\n" in done.out
    assert "reported" not in done.out and done.out.splitlines()[-1] == f"table and figure: {folder / 'tables'}"
    turned = typed(
        "tables", f"records={folder}", "columns=method", "method=wanda,none", "title=Mine", f"out={folder}/x"
    )
    assert turned.status == 0 and turned.out.startswith("### Mine\n")
    assert lines(turned.out)[2:] == [
        ["0", "0.5000", "3.00", ""],
        ["0.5", "0.5000", "", "10.50 ± 0.71"],
        ["2of4", "0.5000", "", "20.50 ± 0.71"],
    ]
    assert {path.name for path in (folder / "x").iterdir()} == {
        *(f"table.{kind}" for kind in ("csv", "md", "tex")),
        *(f"figure.{kind}" for kind in ("csv", "svg", "png")),
    }
    table = pd.read_csv(folder / "x" / "table.csv")
    assert sorted(table["ours"]) == [3.0, 10.5, 20.5] and sorted(table["n"]) == [1, 2, 2]


def test_values_choose_among_runs_and_dense_ones_stay(typed: Callable, folder: Path) -> None:
    chosen = typed("tables", f"records={folder}", "sparsity=.50", "seed=0")
    assert [row[-1] for row in lines(chosen.out)[2:]] == ["3.00", "30.00", "10.00"]


def test_lines_against_an_axis_of_numbers(typed: Callable, tmp_path: Path) -> None:
    for windows in (4, 8, 16):
        text = {"name": "embedded-a", "windows": windows, "seed": 0}
        write(tmp_path, f"a{windows}", measure("embedded-a", 64 / windows), calibration=text)
    done = typed("tables", f"records={tmp_path}")
    assert done.status == 0 and lines(done.out)[0] == ["calibration.windows", "achieved", "embedded-a"]
    drawn = pd.read_csv(tmp_path / "tables" / "figure.csv")
    drawn = drawn.sort_values("calibration.windows")
    assert list(zip(drawn["calibration.windows"], drawn["ours"], strict=True)) == [(4, 16.0), (8, 8.0), (16, 4.0)]
    assert "windows" in (tmp_path / "tables" / "figure.svg").read_text()


def test_a_metric_is_named_where_there_are_several(typed: Callable, tmp_path: Path) -> None:
    both = measure("embedded-a", 9.0), measure("embedded-cloze", 0.25, "acc")
    for seed in (0, 1):
        write(tmp_path, f"a{seed}", *both, seed=seed)
    assert lines(typed("tables", f"records={tmp_path}").out)[0][-1] == "embedded-a"
    assert lines(typed("tables", f"records={tmp_path}", "metric=acc").out)[2][-1] == "25.00 ± 0.00"


@pytest.mark.parametrize(
    ("place", "axes"),
    [
        ("wanda_table3/embedded", ["rows=sparsity,method", "columns=model"]),
        ("harness_embedded/embedded", ["rows=model,method"]),
    ],
)
def test_it_is_the_table_of_the_study_from_its_records(
    place: str, axes: list[str], typed: Callable, tmp_path: Path
) -> None:
    done = typed("tables", f"records={PUBLISHED / place}", *axes, f"out={tmp_path}")
    published = lines((PUBLISHED / place / "table.md").read_text(encoding="utf-8"))
    head, _, *rows = lines(done.out)
    by_name = [dict(zip(head, row, strict=True)) for row in rows]
    theirs = [dict(zip(published[0], row, strict=True)) for row in published[2:]]
    assert sorted(map(str, (sorted(row.items()) for row in by_name))) == sorted(
        map(str, (sorted(row.items()) for row in theirs))
    )


def test_what_comes_with_a_choice_is_no_axis() -> None:
    runs = [
        config(),
        config(method={"name": "sparsegpt", "damping": 0.01}),
        config(model={"name": "large", "window": 64}, method={"name": "none"}),
    ]
    assert differing([options_of(run) for run in runs]) == ["model", "method"]
    runs.append(config(method={"name": "sparsegpt", "damping": 0.1}))
    assert differing([options_of(run) for run in runs]) == ["model", "method", "method.damping"]
    inner = config(method={"name": "dsnot", "inner": {"name": "ria", "a": 0.5}})
    assert options_of(inner)["method.inner"] == "ria" and options_of(inner)["method.inner.a"] == 0.5


def test_a_setting_of_a_planner_is_an_axis_where_no_method_prunes() -> None:
    """Runs that differ in it alone are no two of one kind; what pruning would ask of them is no difference."""
    cuts = [
        config(method={"name": "none"}, planner={"name": "cut", "amount": amount}, sparsity=sparsity)
        for amount, sparsity in ((1, 0.5), (2, 0.6))
    ]
    assert differing([options_of(run) for run in cuts]) == ["planner.amount"]
    assert differing([options_of(run) for run in (*cuts, config())]) == ["method", "planner", "planner.amount"]


def test_a_column_of_runs_without_a_recovery_is_called_none() -> None:
    row = {"method": "wanda", "planner": "cut", "recovery": ""}
    assert _head(row, "recovery", lambda key, value: (1, 1)) == ("none", (0, (0, 0)))
    assert _head(row | {"recovery": "lora"}, "recovery", lambda key, value: (1, 1))[0] == "lora"
    assert _head({"method": "none"}, "recovery", lambda key, value: (1, 1))[0] == "dense"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["rows=modle"], "unknown axis of these records: 'modle'; did you mean model"),
        (["columns=seed"], "seeds of a cell are averaged"),
        (["metric=acc"], "unknown metric of these records: 'acc'"),
        (["figure=pie"], "unknown figure 'pie'"),
        (["figure=lines"], "figure=lines needs an axis with at least three numbers"),
        (["method=ria"], "unknown method among these records: 'ria'; known: magnitude, none, wanda"),
        (["methodd=ria"], "unknown option 'methodd'; did you mean method"),
        (["--cfg=job"], "tables takes <option>=<value>"),
        (["out=/proc/x"], "cannot be written to /proc/x"),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], expected: str, typed: Callable, folder: Path) -> None:
    done = typed("tables", f"records={folder}", *arguments)
    assert (done.status, done.out) == (2, "") and done.err.count("\n") == 1 and expected in done.err, done.err


def test_folders_that_hold_nothing(typed: Callable, tmp_path: Path) -> None:
    assert "holds no records" in typed("tables", f"records={tmp_path}").err
    assert "is not a folder" in typed("tables", f"records={tmp_path / 'none'}").err
    assert "name a study, study=sparsellm_table2, or a folder of records" in typed("tables").err


def test_unlike_protocols_are_chosen_among(typed: Callable, folder: Path) -> None:
    path = next(folder.glob("*_a01.json"))
    content = json.loads(path.read_text())
    content["measures"][0]["protocol"] = "embedded-a-test@64#0"
    path.write_text(json.dumps(content))
    done = typed("tables", f"records={folder}")
    assert done.status == 2 and "choose among the runs by their options" in done.err


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("rows=model columns=model", "model is among rows and is columns too"),
        ("rows=model,,method", "rows=model,,method has an empty entry"),
        ("columns=", "columns= has an empty entry"),
        ("rows=model,model", "names model twice"),
        ("columns=model,method", "one axis makes the columns"),
    ],
)
def test_axes_that_mean_nothing(asked: str, expected: str, typed: Callable, folder: Path) -> None:
    done = typed("tables", f"records={folder}", *asked.split())
    assert done.status == 2 and expected in done.err and done.err.count("\n") == 1
