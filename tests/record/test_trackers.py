"""W&B is told the same values; whatever goes wrong there, the record is safe."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.compose import choices
from harness.config import TRACKERS, Tracker
from harness.record import trackers
from harness.record.schema import Record
from harness.record.trackers import WAIT, Report, check_tracker, track, track_report, values_of
from harness.runtime.errors import UserError

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


def test_an_unknown_tracker_is_refused() -> None:
    assert {Tracker(name).name for name in choices("tracker")} == set(TRACKERS)
    with pytest.raises(UserError, match="unknown tracker 'foo'; known: csv, wandb, wandb-offline"):
        Tracker("foo")


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


@pytest.mark.parametrize("place", ["init", "update", "finish"])
def test_an_outage_is_waited_for_once_and_kept_offline(
    place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    modes, kept, ended = [], [], []

    class Session:
        def __init__(self, mode: str, settings: dict[str, Any], **about: Any) -> None:
            modes.append(mode)
            assert settings["init_timeout"] == settings["finish_timeout"] == WAIT and settings["finish_timeout_raises"]
            self.name, self.online, self.summary = about["name"], mode == "online", self
            self._reach("init")

        def _reach(self, where: str) -> None:
            if self.online and where == place:
                raise TimeoutError("deadline exceeded\nwhile retrying")

        def __enter__(self) -> Session:
            return self

        def update(self, values: dict[str, Any]) -> None:
            self._reach("update")

        def __exit__(self, *_: object) -> None:
            self._reach("finish")
            kept.append(self.name)

    fake = types.SimpleNamespace(init=Session, Settings=dict, teardown=lambda: ended.append(len(modes)))
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    names = [record(fingerprint=letter * 16).name for letter in "abc"]
    for letter in "abc":
        track(Tracker("wandb"), record(fingerprint=letter * 16), tmp_path / "a b")
    track_report(Tracker("wandb"), Report("s", "embedded", {}, []), tmp_path / "a b")
    assert modes == ["online", *["offline"] * 4]
    assert kept[-4:] == [*names, "report-s-embedded"]
    assert ended == [1]  # between the two attempts
    said = capsys.readouterr().err
    assert said.startswith("tracker wandb: TimeoutError: deadline exceeded while retrying; ")
    assert said.endswith(f": wandb sync '{tmp_path / 'a b' / 'wandb'}'\n") and said.count("\n") == 1


def test_the_service_that_died_ends_no_study(
    wandb_log: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    init = sys.modules["wandb"].init

    def online_fails(**settings: Any) -> Any:
        return 1 / 0 if settings["mode"] == "online" else init(**settings)

    monkeypatch.setattr(sys.modules["wandb"], "init", online_fails)
    monkeypatch.setattr(sys.modules["wandb"], "teardown", lambda: sys.exit(3), raising=False)
    track(Tracker("wandb"), record(), tmp_path)
    assert [entry[0] for entry in wandb_log] == ["init", "summary"]
    assert "wandb sync" in capsys.readouterr().err


def test_a_tracker_that_exits_costs_nothing(
    wandb_log: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.modules["wandb"], "init", lambda **settings: sys.exit(3))
    track(Tracker("wandb-offline"), record(), tmp_path)
    assert capsys.readouterr().err == "tracker wandb-offline: SystemExit: 3; the record is safe\n"


def test_a_login_that_is_not_answered_is_asked_once(
    wandb_log: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def login(prompt: bool) -> bool:
        asked.append(prompt)
        raise TimeoutError("the service is busy")

    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr(sys.modules["wandb"], "login", login)
    for _ in range(3):
        check_tracker(Tracker("wandb"), tmp_path)
    track(Tracker("wandb"), record(), tmp_path)
    assert asked == [False]
    assert wandb_log[0][1]["mode"] == "offline"
    assert capsys.readouterr().err.count("wandb sync") == 1


def test_tables_and_figures_go_into_one_report_run(wandb_log: list[Any], tmp_path: Path) -> None:
    report = Report("s", "embedded", {"table": pd.DataFrame({"a": [1]})}, [tmp_path / "figure.png"])
    track_report(Tracker("wandb"), report, tmp_path)
    assert (wandb_log[0][1]["job_type"], wandb_log[0][1]["id"]) == ("report", "report-s-embedded")
    assert [entry for entry in wandb_log if entry[0] == "log"] == [("log", ["table"]), ("log", ["figure"])]


def test_not_logged_in_is_said_before_the_work(
    wandb_log: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(UserError, match="wandb login"):
        check_tracker(Tracker("wandb"), tmp_path)
    check_tracker(Tracker("wandb-offline"), tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", "k")
    check_tracker(Tracker("wandb"), tmp_path)


def test_the_real_wandb_writes_an_offline_run(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    track(Tracker("wandb-offline"), record(), tmp_path)
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert folder.name.endswith("tiny_wanda_uniform_2of4_all_s0_ffffffffffffffff-2")
    assert json.dumps(values_of(record()))


def test_the_real_wandb_keeps_offline_what_its_host_does_not_take(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that could not be opened is opened again under the same id."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(trackers, "WAIT", 1.0)
    for letter in "ab":
        track(Tracker("wandb"), record(fingerprint=letter * 16), tmp_path)
    kept = sorted(folder.name[-5:] for folder in (tmp_path / "wandb").glob("offline-run-*"))
    assert kept == ["aaa-2", "bbb-2"]
    assert len(list((tmp_path / "wandb").glob("run-*"))) == 1
    assert capsys.readouterr().err.count("wandb sync") == 1
