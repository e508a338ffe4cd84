"""Searching for an allocation from the command line: what is recorded, kept for other runs, refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from harness.calibration.levels.assembler import LevelAssembler
from tests.commands import Typed, save_tiny

MSP = [
    *("allocator=msp", "allocator.sensitivity_windows=2", "allocator.generations=2", "allocator.population=4"),
    *("allocator.windows=2", "allocator.held_out=2", "allocator.step=0.1"),
]
EVOPRESS = [
    *("allocator=evopress", "allocator.generations=2", "allocator.offspring=4", "allocator.survivors=[2,1]"),
    *("allocator.stages=[1,2]", "allocator.held_out=0", "allocator.step=0.1"),
]


def said(done: Typed, *expected: str) -> None:
    """One sentence."""
    assert done.status == 2, done
    lines = done.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.err
    assert all(part in lines[0] for part in expected), done.err


def mean_asked(sites: dict[str, Any]) -> float:
    parameters = sum(site["parameters"] for site in sites.values())
    return sum(site["asked"] * site["parameters"] for site in sites.values()) / parameters


def curve(record: dict[str, Any]) -> list[dict[str, Any]]:
    generations = record["allocation"]["search"]["generations"]
    return [{key: value for key, value in one.items() if key != "seconds"} for one in generations]


def cached(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.glob("[!.]*"))}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "records" / ".cache"


@pytest.mark.parametrize(
    ("search", "sparsity", "budget"), [(MSP, "2of4", 0.5), (EVOPRESS, "0.6", 0.6)], ids=["msp", "evopress"]
)
def test_a_search_is_recorded(search: list[str], sparsity: str, budget: float, typed: Callable, options: list) -> None:
    done = typed(*options, *search, f"sparsity={sparsity}")
    assert done.status == 0, done.err
    record = done.record
    trajectory = record["allocation"]["search"]["generations"]
    assert [one["generation"] for one in trajectory] == [0, 1, 2]
    best = [one["best"] for one in trajectory]
    assert best == sorted(best, reverse=True) and best[-1] >= 0
    assert record["allocation"]["search"]["evaluations"] == trajectory[-1]["evaluations"] > 4
    assert mean_asked(record["sites"]) == pytest.approx(budget, abs=1e-9)
    assert record["sparsity"]["achieved"] == pytest.approx(budget, abs=0.02)


def test_the_record_of_msp_tells_the_traces_and_the_held_out_losses(typed: Callable, options: list) -> None:
    told = typed(*options, *MSP).record["allocation"]
    assert (told["sensitivity"]["kind"], told["sensitivity"]["windows"]) == ("fisher", 2)
    assert len(told["sensitivity"]["value"]) == 14 and all(value > 0 for value in told["sensitivity"]["value"].values())
    assert set(told["search"]["held_out"]) == {"best", "uniform"}
    assert told["search"]["database"] and told["search"]["tokens"] == told["search"]["evaluations"] * 2 * 32


def test_another_method_takes_up_the_cached_search(
    typed: Callable, options: list, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database is made of `pruner`, so what a run prunes with afterwards changes nothing; nothing is computed."""
    first = typed(*options, *MSP, "method=wanda")
    kept = cached(cache)
    assert [name.split("_")[0] for name in kept] == ["fisher", "msp"]
    for name in ("harness.calibration.views.model.build_assembler", "harness.calibration.views.model.fisher_trace"):
        monkeypatch.setattr(name, lambda *_, **__: 1 / 0)
    second = typed(*options, *MSP, "method=magnitude")
    assert second.status == 0, second.err
    assert cached(cache) == kept
    assert second.record["allocation"] == first.record["allocation"]
    asked = [{site: one["asked"] for site, one in done.record["sites"].items()} for done in (first, second)]
    assert asked[0] == asked[1]


def test_another_calibration_or_model_is_another_search(
    typed: Callable, options: list, cache: Path, tmp_path: Path
) -> None:
    typed(*options, *MSP)
    save_tiny(tmp_path / "other", rms_norm_eps=0.1)
    rest = [text for text in options if not text.startswith("model.path")]
    assert typed(*options, *MSP, "calibration=embedded-b").status == 0
    assert typed(*rest, f"model.path={tmp_path / 'other'}", *MSP).status == 0
    assert len([name for name in cached(cache) if name.startswith("msp_")]) == 3


def test_a_record_as_a_file_gives_the_same_sites(typed: Callable, options: list) -> None:
    found = typed(*options, *MSP, "sparsity=2of4")
    path = found.out.strip().removeprefix("record: ")
    again = typed(*options, "allocator=file", f"allocator.path={path}", "sparsity=2of4")
    assert again.status == 0, again.err
    assert again.record["sites"] == found.record["sites"]
    assert again.record["measures"] == found.record["measures"]


def test_a_run_that_is_killed_goes_on(
    typed: Callable, options: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the third call for losses; the same command ends like an undisturbed one."""
    whole = typed(*options, *MSP, f"cache={tmp_path / 'whole'}").record
    judge, calls = LevelAssembler.losses, []

    def killed(assembler: LevelAssembler, *arguments: Any) -> list[float]:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return judge(assembler, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(LevelAssembler, "losses", killed)
        with suppress(KeyboardInterrupt):
            assert typed(*options, *MSP, "force=true", f"cache={tmp_path / 'cut'}").status != 0
    assert len(calls) == 3
    resumed = typed(*options, *MSP, "force=true", f"cache={tmp_path / 'cut'}")
    assert resumed.status == 0, resumed.err
    assert resumed.record["sites"] == whole["sites"]
    assert curve(resumed.record) == curve(whole)


def test_a_search_of_another_model_is_not_taken_up(typed: Callable, options: list, cache: Path, tmp_path: Path) -> None:
    save_tiny(tmp_path / "other", rms_norm_eps=0.1)
    rest = [text for text in options if not text.startswith("model.path")]
    typed(*rest, f"model.path={tmp_path / 'other'}", *MSP, f"cache={tmp_path / 'elsewhere'}")
    first = typed(*options, *MSP)
    (own,), (foreign,) = cache.glob("msp_*.json"), (tmp_path / "elsewhere").glob("msp_*.json")
    assert own.name != foreign.name
    shutil.copy(foreign, own)
    again = typed(*options, *MSP, "force=true")
    assert "belongs to another model" in again.err and again.status == 0
    assert curve(again.record) == curve(first.record)


def test_a_damaged_search_is_made_again_and_the_record_says_so(typed: Callable, options: list, cache: Path) -> None:
    first = typed(*options, *MSP)
    (own,) = cache.glob("msp_*.json")
    whole = own.read_text()
    for damaged in (whole[: len(whole) // 2], whole.replace('"genome": [', '"genome": [1, ', 1)):
        assert damaged != whole
        own.write_text(damaged)
        again = typed(*options, *MSP, "force=true")
        assert again.status == 0, again.err
        assert curve(again.record) == curve(first.record) and again.record["sites"] == first.record["sites"]
        assert any(str(own) in note and note.endswith("it is computed again") for note in again.record["notes"])


def test_a_cache_that_cannot_be_written(typed: Callable, options: list, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said(typed(*options, *MSP, f"cache={tmp_path / 'file'}"), str(tmp_path / "file"))


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ([*MSP, "allocator.minimum=0.6"], "no assembly of the levels"),
        ([*EVOPRESS, "allocator.maximum=0.4"], "allocator.maximum=0.4"),
        ([*MSP, "sparsity=2of4", "allocator.levels=[3,4]"], "no assembly of the levels [3, 4] of 4"),
        ([*EVOPRESS, "sparsity=2of4", "allocator.levels=[2,5]"], "not all within 0 to 4"),
        ([*MSP, "allocator.levels=[1,2]"], "allocator.levels needs a pattern"),
        ([*MSP, "allocator.database_gib=1e-9"], "allocator.database_gib=1e-09"),
        ([*MSP, "allocator.sensitivity_windows=0"], "allocator.sensitivity_windows and allocator.probes"),
        ([*MSP, "allocator.reach=inf"], "allocator.reach=inf has to be a finite number"),
        ([*MSP, "sparsity=2of5"], "not divisible by 5"),
        ([*MSP, "allocator.population=1"], "allocator.population"),
        ([*MSP, "allocator.pruner=wandaa"], "wanda"),
        ([*EVOPRESS, "allocator.survivors=[1,2]"], "allocator.survivors"),
        (["allocator=isc", "allocator.windows=0"], "allocator.windows and allocator.probes at least 1"),
        (["allocator=isc", "allocator.variant=released", "sparsity=2of4"], "has no N:M"),
        (["allocator=isc", "allocator.variant=released", "allocator.granularity=block", "sparsity=0.7"], "has no step"),
        (["allocator=mrp", "allocator.maximum=0.4"], "allocator.maximum=0.4 is below"),
        (["allocator=mrp", "allocator.step=0"], "allocator.step"),
        ([*MSP, "calibration.split=test"], "overlaps the evaluation text"),
        (["calibration=embedded-a", "calibration.split=test"], "overlaps the evaluation text embedded-a (test)"),
    ],
)
def test_what_cannot_be(wrong: list[str], expected: str, typed: Callable, options: list, tmp_path: Path) -> None:
    said(typed(*options, *wrong), expected)
    assert not list((tmp_path / "records").glob("*.json"))


def test_what_needs_no_calibration_may_be_evaluated_on_any_text(typed: Callable, options: list) -> None:
    assert typed(*options, "method=magnitude", "allocator=uniform", "calibration.split=test").status == 0


def test_a_wrong_point_of_a_sweep_keeps_the_others(typed: Callable, options: list, tmp_path: Path) -> None:
    """What no assembly meets is a skipped record, since it shows with the model in memory."""
    done = typed("-m", *options, *MSP, "allocator.maximum=0.55", "sparsity=0.5,0.6")
    records = [json.loads(path.read_text()) for path in (tmp_path / "records").glob("*.json")]
    assert sorted(record["status"] for record in records) == ["ok", "skipped"], done.err
