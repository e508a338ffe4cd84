"""Studies: every one composes at every scale; planning, running, resuming, tables and publishing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

from harness import compose, groups
from harness.record import schema
from harness.study import commands, grid
from harness.study.estimate import estimate
from harness.study.plan import progress_of

STUDIES = [
    *(
        "harness_allocators",
        "harness_embedded",
        "harness_numerics",
        "harness_oneshot",
        "harness_sparsellm",
        "isc_figure3",
        "isc_table1",
        "isc_table2",
    ),
    *(f"msp_{item}" for item in ("ablation", "calibration", "figure1", "pruner", "sensitivity", "start")),
    "owl_table3",
    *(f"sparsellm_{item}" for item in ("ablation", "figure3", "figure5", "table2", "time", "zeroshot")),
    *("wanda_table2", "wanda_table3"),
]
SMALL = {
    "title": "A study of a test",
    "table": {"columns": "task", "rows": ["model", "scope", "sparsity", "method"], "figure": "curves"},
    "grids": [
        {"method": ["none"]},
        {"method": ["wanda", "notyet"], "sparsity": [0.5, "2of4", "3of5"], "scope": ["first_half", "all"]},
    ],
    "scales": {"embedded": {"axes": {"model": ["hf"]}}},
}


@pytest.fixture(autouse=True)
def _assets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HARNESS_ASSETS", str(tmp_path / "assets"))
    compose.register()


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A study of its own in a copy of conf/, and a results folder of its own."""
    shutil.copytree(groups.CONF, tmp_path / "conf")
    (tmp_path / "conf" / "study" / "test_table1.yaml").write_text(yaml.safe_dump(SMALL))
    monkeypatch.setattr(groups, "CONF", tmp_path / "conf")
    monkeypatch.setattr(grid, "CONF", tmp_path / "conf")
    monkeypatch.setattr(commands, "ROOT", tmp_path)
    return "study=test_table1"


def test_the_studies_are_there() -> None:
    assert grid.study_names() == STUDIES


def _defined() -> list[tuple[str, str]]:
    folder = groups.CONF / "study"
    return [
        (name, scale) for name in STUDIES for scale in yaml.safe_load((folder / f"{name}.yaml").read_text())["scales"]
    ]


@pytest.mark.parametrize(("name", "scale"), _defined())
def test_every_study_composes_and_can_be_planned(name: str, scale: str, tmp_path: Path) -> None:
    study = grid.load_study(name, scale, [f"records={tmp_path}", "seed=0"])  # the other seeds compose alike
    for item in progress_of(study):
        if item.point.cfg is None:
            assert item.state == "missing"
            assert "is not here yet" in item.why
        else:
            assert item.state == "to do"
            assert item.point.cfg.composed["study"] == name
            guess = estimate(item.point.cfg, "cuda")
            assert guess is not None
            assert guess.seconds > 0
            assert guess.peak_bytes > 1e6


def test_a_papers_study_is_defined_at_every_scale() -> None:
    for name in STUDIES:
        scales = [scale for study, scale in _defined() if study == name]
        assert scales == (["embedded"] if name == "harness_embedded" else list(compose.SCALES))


def test_sparsellm_pruned_the_first_half(tmp_path: Path) -> None:
    points = grid.load_study("sparsellm_table2", "paper", [f"records={tmp_path}"]).points
    assert {point.axes["scope"] for point in points if "scope" in point.axes} == {"first_half", "all"}


def test_a_study_runs_resumes_and_tells(typed: Callable, options: list[str], small: str, tmp_path: Path) -> None:
    planned = typed("plan", small, *options)
    assert planned.status == 0
    assert "7 to do, 6 missing" in planned.out  # without geometry, 3of5 is to do until it is refused
    ran = typed(small, *options)
    assert ran.status == 0, ran.err
    assert "ran 7 of 7 cells" in ran.out
    assert ran.out.count("record: ") == 7
    again = typed(small, *options)
    assert "7 cells done, 0 to run" in again.out
    told = typed("status", small, *options)
    assert "5 done, 6 missing, 2 skipped" in told.out
    assert "not divisible by 5" in told.out
    folder = tmp_path / "tables" / "test_table1" / "embedded"
    assert {path.name for path in folder.iterdir()} == {
        *("table.csv", "table.md", "table.tex", "figure.svg", "figure.png", "figure.csv")
    }
    table = pd.read_csv(folder / "table.csv")
    assert set(table["verdict"]) == {"missing"}
    assert table["ours"].notna().sum() == 5
    markdown = (folder / "table.md").read_text()
    assert "skipped" in markdown
    assert "missing" in markdown


def test_tables_need_records_alone(typed: Callable, options: list[str], small: str, tmp_path: Path) -> None:
    typed(small, *options)
    folder = tmp_path / "tables" / "test_table1" / "embedded"
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(folder)
    gone = [text if not text.startswith("model.path") else "model.path=/gone" for text in options]
    assert typed("tables", small, *options).status == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    assert "to do" in typed("status", small, *gone).out  # another path is another question


def test_failed_points_are_retried(
    typed: Callable, options: list[str], small: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.methods.wanda import Wanda

    with monkeypatch.context() as patch:
        patch.setattr(Wanda, "prune", lambda *_: 1 / 0)
        failed = typed(small, *options)
    assert failed.status == 1
    assert "failed" in typed("status", small, *options).out
    retried = typed("retry", small, *options)
    assert retried.status == 0
    assert "4 failed and 0 lost points to run again" in retried.out


def test_an_override_of_an_axis_keeps_some_of_its_values(typed: Callable, options: list[str], small: str) -> None:
    assert "2 to do" in typed("plan", small, *options, "method=wanda", "sparsity=0.5").out
    assert "3 to do" in typed("plan", small, *options, "method=none,wanda", "sparsity=0.5").out
    assert "1 to do" in typed("plan", small, *options, "method=wanda", "sparsity=.5", "scope=all").out
    assert "2 to do" in typed("plan", small, *options, "method=wanda", "sparsity=0.50", "method.group=matrix").out
    empty = typed("plan", "study=isc_table2", "method=sparsegpt", "allocator=isc")
    assert empty.status == 2
    assert "study isc_table2 has no point with method=sparsegpt, allocator=isc" in empty.err
    refused = typed("plan", small, *options, "method=wnda")
    assert refused.status == 2
    assert "unknown method of study test_table1: 'wnda'; did you mean wanda" in refused.err


def test_a_default_spelt_out_fills_the_same_cell(typed: Callable, options: list[str], small: str) -> None:
    typed(*options, "method=none", "evaluation_window=32", "dtype=float32")
    assert "1 done" in typed("status", small, *options).out
    assert "6 to run" in typed(small, *options).out


def test_records_of_an_earlier_revision_are_shown_and_run_again(
    typed: Callable, options: list[str], small: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.methods.wanda import Wanda

    typed(small, *options, "sparsity=0.5")
    monkeypatch.setattr(Wanda, "revision", 99)
    assert "1 done, 2 stale" in typed("status", small, *options, "sparsity=0.5", "method=none,wanda").out
    assert "†" in typed("tables", small, *options, "sparsity=0.5").out
    again = typed(small, *options, "sparsity=0.5")
    assert "2 to run" in again.out
    assert "†" not in again.out


def test_points_whose_record_is_gone_are_retried(
    typed: Callable, options: list[str], small: str, tmp_path: Path
) -> None:
    typed(small, *options)
    lost = next(path for path in (tmp_path / "records").glob("*.json") if "_wanda_" in path.name)
    lost.unlink()
    assert (
        "0 failed and 0 lost points to run again, and 1 without a current record" in typed("retry", small, *options).out
    )
    assert lost.is_file()


def test_a_mistake_in_a_point_is_said_and_not_called_missing(
    typed: Callable, options: list[str], small: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = typed(small, *options, "model.window=1")
    assert (said.status, said.out) == (2, "")
    assert "model.window=1 has to be a number of tokens" in said.err
    monkeypatch.delenv("HARNESS_ASSETS")
    said = typed("study=sparsellm_table2", "scale=proxy", options[-1])
    assert said.status == 2
    assert "set HARNESS_ASSETS to the folder that holds it" in said.err
    assert typed("plan", "study=sparsellm_table2", "scale=proxy", options[-1]).status == 0  # it needs no checkpoint


def test_publishing_packs_records_and_makes_the_table(
    typed: Callable, options: list[str], small: str, tmp_path: Path
) -> None:
    typed(small, *options)
    assert typed("publish", small, *options).status == 0
    folder = tmp_path / "results" / "published" / "test_table1" / "embedded"
    records = list(schema.unpack(folder / schema.PACKED))
    assert sorted(record.status for record in records) == ["ok"] * 5 + ["skipped"] * 2
    assert all(record.sites for record in records if record.status == "ok")
    assert {record.config["records"] for record in records} == {"results/records"}
    assert (folder / "table.md").is_file()
    before = (folder / schema.PACKED).read_bytes()
    refused = typed("publish", small, *options[:-1], "evaluation_limit=1", f"records={tmp_path / 'none'}")
    assert refused.status == 2 and "holds 0 records of test_table1, 7 are published" in refused.err
    assert (folder / schema.PACKED).read_bytes() == before


def test_unlike_protocols_are_refused(typed: Callable, options: list[str], small: str, tmp_path: Path) -> None:
    typed(small, *options)
    records = tmp_path / "records"
    path = next(p for p in records.glob("*.json") if "_none_" in p.name)
    content = json.loads(path.read_text())
    content["measures"][0]["protocol"] = "embedded-a-test@64#00000000"
    path.write_text(json.dumps(content))
    refused = typed("tables", small, *options)
    assert refused.status == 2
    assert "unlike protocols" in refused.err


def test_a_launched_study_ends_with_its_table(typed: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = ["study=isc_table2", "model=embedded-llama", "method=none,magnitude", "evaluation_limit=2"]
    part += [f"records={tmp_path / 'records'}", "cluster=joblib"]
    refused = typed(*part, "device=cuda:7")  # joblib's processes run on this machine
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert "device=cuda:7 is not there" in refused.err
    ran = typed(*part)
    assert ran.status == 0, ran.err
    assert "0 cells done, 2 to run" in ran.out
    assert "| embedded-llama | magnitude | uniform" in ran.out
    assert "2 cells done, 0 to run" in typed(*part).out
    for path in (tmp_path / "records").glob("*.json"):  # other weights at the same path, younger than the records
        os.utime(path, (0, 0))
    with monkeypatch.context() as patch:
        patch.setattr(commands, "weights_hash", lambda _: "other")
        patch.setattr(commands.launch, "launch", lambda study, numbers: None)
        assert "0 cells done, 2 to run" in typed(*part).out
    monkeypatch.setattr(commands.launch, "launch", lambda study, numbers: None)
    assert "0 cells done, 2 to run" in typed(*part, "force=true").out
    told = typed(*part[:-1], "cluster=joblb")
    assert told.status == 2
    assert "did you mean joblib" in told.err


def test_mistakes_in_commands(typed: Callable) -> None:
    assert "did you mean status" in typed("statu", "study=isc_table1").err
    assert "name a study" in typed("plan").err
    assert "unknown scale" in typed("plan", "study=isc_table1", "scale=tiny").err
