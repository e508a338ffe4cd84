"""W&B is told the same values; whatever goes wrong there, the record is safe."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.config import Tracker
from harness.core.errors import UserError
from harness.record.schema import Record
from harness.record.trackers import Report, check_tracker, track, track_report, values_of

CONFIG = {
    "model": {"name": "tiny"},
    "method": {"name": "wanda"},
    "allocator": {"name": "uniform"},
    "sparsity": "2of4",
    "scope": "all",
    "seed": 0,
}
MEASURE = {
    "task": "ptb",
    "metric": "perplexity",
    "value": 9.5,
    "stderr": None,
    "protocol": "p#1",
    "samples": 3,
    "note": "",
}


def record(**changes: Any) -> Record:
    given = {
        "status": "ok",
        "reason": "",
        "fingerprint": "f" * 16,
        "config": CONFIG,
        "measures": (MEASURE,),
        "attempt": 2,
    }
    return Record(**(given | changes))


def test_name_id_and_fingerprint_are_the_runs(wandb_log: list[Any], tmp_path: Path) -> None:
    track(Tracker("wandb", group="a_study"), record(), tmp_path)
    (_, settings), (_, summary) = wandb_log
    assert settings["name"] == "tiny_wanda_uniform_2of4_all_s0_ffffffffffffffff"
    assert settings["id"] == settings["name"] + "-2"
    assert settings["config"]["fingerprint"] == "f" * 16
    assert (settings["mode"], settings["resume"], settings["group"]) == ("online", "allow", "a_study")
    assert summary["ptb/perplexity"] == 9.5 == values_of(record())["ptb/perplexity"]


def test_offline_does_not_ask_to_resume(wandb_log: list[Any], tmp_path: Path) -> None:
    track(Tracker("wandb-offline"), record(status="failed", reason="x"), tmp_path)
    assert (wandb_log[0][1]["mode"], wandb_log[0][1]["resume"]) == ("offline", None)
    assert ("finish", 1) in wandb_log


def test_a_lost_connection_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def init(**_: Any) -> None:
        raise ConnectionError("gone")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, Settings=dict))  # type: ignore[arg-type]
    track(Tracker("wandb"), record(), tmp_path)
    track_report(Tracker("wandb"), Report("s", "embedded", {}, []), tmp_path)
    assert capsys.readouterr().err.count("gone") == 2


def test_tables_and_figures_go_into_one_report_run(wandb_log: list[Any], tmp_path: Path) -> None:
    report = Report("s", "embedded", {"table": pd.DataFrame({"a": [1]})}, [tmp_path / "figure.png"])
    track_report(Tracker("wandb"), report, tmp_path)
    assert (wandb_log[0][1]["job_type"], wandb_log[0][1]["id"]) == ("report", "report-s-embedded")
    assert [entry for entry in wandb_log if entry[0] == "log"] == [("log", ["table"]), ("log", ["figure"])]


def test_not_logged_in_is_said_before_the_work(wandb_log: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(UserError, match="wandb login"):
        check_tracker(Tracker("wandb"))
    check_tracker(Tracker("wandb-offline"))
    monkeypatch.setenv("WANDB_API_KEY", "k")
    check_tracker(Tracker("wandb"))


def test_the_real_wandb_writes_an_offline_run(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    track(Tracker("wandb-offline"), record(), tmp_path)
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert folder.name.endswith("tiny_wanda_uniform_2of4_all_s0_ffffffffffffffff-2")
    assert json.dumps(values_of(record()))
