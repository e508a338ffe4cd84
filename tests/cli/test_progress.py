"""What a run and a sweep say of their numbers; standard output keeps the lines that scripts read."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from harness.record.schema import Record
from harness.report.numbers import MOST, duration, line
from harness.runtime import progress
from harness.study.progress import SweepProgress, varying
from tests.commands import but


def test_a_run_prints_its_numbers(typed: Callable, options: list[str]) -> None:
    done = typed(*options)
    value = done.record["measures"][0]["value"]
    (said,) = done.err.splitlines()
    shown = re.fullmatch(r"perplexity embedded-a ([\d.e+]+); sparsity 0\.5000; [\d.]+ s", said)
    assert shown and float(shown[1]) == pytest.approx(value, rel=5e-3)
    assert done.out.count("\n") == 1  # the record's path
    again = typed(*options)  # found, and its numbers are the same ones
    assert again.err.splitlines()[-1] == said and again.out == done.out


def test_a_sweep_prints_how_far_it_is_and_a_table(typed: Callable, options: list[str]) -> None:
    swept = typed("-m", *options, "method=wanda,none", "sparsity=0.5,3of5")
    assert all(text.startswith("record: ") for text in swept.out.splitlines())
    heads = [text for text in swept.err.splitlines() if text.startswith("[")]
    assert [text.partition(":")[0] for text in heads] == [
        "[1/4] method=wanda sparsity=0.5",
        "[2/4] method=wanda sparsity=3of5",
        "[3/4] method=none sparsity=0.5",
        "[4/4] method=none sparsity=3of5",
    ]
    assert "ok in" in heads[0] and " left" in heads[0] and "skipped" in heads[1]
    assert swept.err.count("found ok record") == 1  # a dense model is the same one at any sparsity
    head, _, *rows = [
        [cell.strip() for cell in text.split("|")[1:-1]] for text in swept.err.splitlines() if "| " in text
    ]
    assert head == ["sparsity", "achieved", "method", "embedded-a"]
    assert [row[:3] for row in rows] == [
        ["0", "0.0000", "none"],
        ["3of5", "", "wanda"],
        ["0.5", "0.5000", "wanda"],
    ]


def test_a_sweep_without_a_table(typed: Callable, options: list[str]) -> None:
    swept = typed("-m", *but(options, "method=magnitude"), "evaluation_limit=1,2")
    assert swept.status == 0 and "no table: " in swept.err and swept.out.count("record: ") == 2


def test_lines() -> None:
    record = Record("ok", "", "f", {}, {"achieved": 0.5}, stages={"prune": {"seconds": 2.0}})
    measures = [{"task": f"t{at}", "metric": "acc", "value": at / 100} for at in range(MOST + 1)]
    assert line(record) == "sparsity 0.5000"
    assert line(replace(record, measures=tuple(measures))).endswith("t11 11.00; 1 more measures; sparsity 0.5000")
    lost = {"task": "ptb", "metric": "perplexity", "value": None}
    assert line(replace(record, measures=(lost,))) == "perplexity ptb not finite; sparsity 0.5000"
    assert line(replace(record, status="skipped", reason="too wide")) == "skipped: too wide"
    assert [duration(seconds) for seconds in (90, 900, 9000)] == ["90 s", "15 min", "2.5 h"]
    assert varying(["a=1 b=2", "a=1 b=3"]) == ["b=2", "b=3"] and varying(["a=1"]) == varying(["a=1", "a=1"])[:1]
    hostile = SweepProgress({0: "model=\x1b[31mred"}).ended(0, record, is_new=True)
    assert "\x1b" not in hostile


def test_a_run_says_what_a_planner_cut(typed: Callable, options: list[str]) -> None:
    done = typed(*options, "planner=block_influence", "method=none")
    counted = done.record["parameters"]
    left = f"{counted['model']:,} of {counted['dense']:,} parameters left"
    assert f"; cut 1 block, {left} (" in done.err
    heads = Record("ok", "", "f", {}, plan={"edit": {"head": {"0": [1, 2], "3": [0]}, "mlp": [4]}})
    assert line(heads) == "cut 3 heads, 1 mlp"


def test_training_says_its_pace_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "SAID_AFTER", 0.0)
    monkeypatch.setattr(progress, "WORTH_SAYING", 0.0)
    assert list(progress.training_steps(range(3, 8), "recover", 512)) == [3, 4, 5, 6, 7]
    (said,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"recover: [\d,]+ tokens a second, about 0.0 min left of this learning rate", said)
