"""Sweeps over groups with settings of these groups: one composition, whoever runs the points."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import groups
from harness.chosen import apportioned
from harness.overrides import points as listed
from tests.commands import but


def settings(folder: Path, group: str, key: str) -> dict[str, object]:
    found = [json.loads(path.read_text())["config"][group] for path in folder.glob("*.json")]
    return {choice["name"]: choice[key] for choice in found}


@pytest.mark.parametrize("cluster", ["local", "joblib"])
def test_a_setting_of_all_the_swept_methods(cluster: str, typed: Callable, options: list[str], tmp_path: Path) -> None:
    given = but(options, "evaluation=[]", "method=sparsegpt,isc", "method.damping=0.02", f"cluster={cluster}")
    done = typed("-m", *given)
    assert done.status == 0, done.err
    assert settings(tmp_path / "records", "method", "damping") == {"sparsegpt": 0.02, "isc": 0.02}


def test_a_setting_of_all_the_swept_allocators(typed: Callable, options: list[str], tmp_path: Path) -> None:
    quick = ["allocator.generations=1", "allocator.step=0.25", "allocator.reach=0.25", "method=magnitude"]
    done = typed("-m", *but(options, "evaluation=[]"), *quick, "allocator=msp,evopress")
    assert done.status == 0, done.err
    assert settings(tmp_path / "records", "allocator", "generations") == {"msp": 1, "evopress": 1}


def test_a_setting_goes_to_the_choices_that_have_it(typed: Callable, options: list[str], tmp_path: Path) -> None:
    """In a sweep over kinds; whatever else is swept, a choice without the setting is one point."""
    done = typed("-m", *but(options, "evaluation=[]"), "method=none,wanda,sparsegpt", "method.damping=0.02,0.03")
    assert done.status == 0 and done.out.count("record: ") == 4, done.err
    assert "note: method.damping goes to method=sparsegpt, not to method=none or method=wanda, which has no" in done.err
    found = [json.loads(path.read_text())["config"]["method"] for path in (tmp_path / "records").glob("*.json")]
    assert sorted((one["name"], one.get("damping")) for one in found if one["name"] == "sparsegpt") == [
        ("sparsegpt", 0.02),
        ("sparsegpt", 0.03),
    ]
    assert sorted(one["name"] for one in found if "damping" not in one) == ["none", "wanda"]


@pytest.mark.parametrize(
    ("overrides", "points"),
    [
        ("recovery=none,lora recovery.tokens=1000", ["recovery=none", "recovery=lora recovery.tokens=1000"]),
        ("planner=none,block_influence planner.amount=1", ["planner=none", "planner=block_influence planner.amount=1"]),
        ("allocator.spread=0.1 allocator=uniform,owl", ["allocator=uniform", "allocator.spread=0.1 allocator=owl"]),
        (
            "method=sparsellm,sparsegpt method.inner=wanda method.inner.group=matrix",
            ["method=sparsellm method.inner=wanda method.inner.group=matrix", "method=sparsegpt"],
        ),
        (
            "allocator=msp allocator.pruner=wanda,sparsegpt allocator.pruner.blocksize=64",
            [
                "allocator=msp allocator.pruner=wanda",
                "allocator=msp allocator.pruner=sparsegpt allocator.pruner.blocksize=64",
            ],
        ),
        ("method=wanda,ria method.foo=1", ["method=wanda method.foo=1", "method=ria method.foo=1"]),
        ("method=wanda method.damping=1 seed=0,0", ["method=wanda method.damping=1 seed=0"] * 2),
    ],
)
def test_which_settings_a_point_is_given(overrides: str, points: list[str]) -> None:
    groups.register()
    assert [" ".join(point) for point in apportioned(listed(overrides.split()))[0]] == points


def test_a_setting_that_no_choice_has_is_refused(typed: Callable, options: list[str], tmp_path: Path) -> None:
    done = typed("-m", *but(options, "evaluation=[]"), "method=wanda,sparsegpt", "method.dampin=0.1")
    assert done.status == 2 and done.err.count("\n") == 1 and "unknown setting of method: 'dampin'" in done.err
    alone = typed("-m", *but(options, "evaluation=[]"), "method=none", "method.group=row")
    assert alone.status == 2 and "unknown setting of method: 'group'; it has none" in alone.err
    assert not (tmp_path / "records").exists()


def test_a_study_narrowed_to_methods_with_a_setting(typed: Callable, tmp_path: Path) -> None:
    study = ["study=harness_embedded", f"records={tmp_path}", "method.damping=0.02"]
    planned = typed("plan", *study, "method=sparsegpt")
    both = typed("plan", "study=isc_table1", f"records={tmp_path}", "scale=proxy", "method=sparsegpt,isc", study[2])
    assert planned.status == both.status == 0, both.err
    assert "method=isc" in both.out and "method=sparsegpt" in both.out
    lacking = typed("plan", *study, "method=sparsegpt,magnitude")
    assert lacking.status == 2 and "with method=magnitude: unknown setting of method: 'damping'" in lacking.err


def test_a_sweep_leaves_its_records_and_nothing_else(typed: Callable, options: list[str], tmp_path: Path) -> None:
    done = typed("-m", *but(options, "evaluation=[]"), "method=none", "seed=0,0,1")
    assert done.status == 0 and done.out.count("record: ") == 3
    assert done.err.count("found ok record of this run") == 2  # the same point again; nothing of a dense one is drawn
    assert [path.suffix for path in (tmp_path / "records").iterdir() if path.is_file()] == [".json"]
    assert not (tmp_path / "records" / ".sweep").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("hydra.launcher.n_jobs=2", "cluster=local has none"),
        ("-m cluster=gpus hydra.launcher.x=1", "cluster=gpus has none"),
        ("cluster.jobs=2", "cluster.jobs=2 is for a launcher"),
        ("cluster=joblib", "add -m, or leave it out"),
        ("-m cluster=joblib hydra.launcher.foo=1", "unknown setting of hydra.launcher: 'foo'"),
        ("-m cluster=joblib cluster.jobs=0", "cluster.jobs=0 has to be a whole number of at least 1"),
        ("plan study=harness_embedded hydra.launcher.foo=1", "cluster=local has none"),
        ("plan study=harness_embedded cluster=foo", "unknown cluster 'foo'"),
        ("study=harness_embedded cluster=joblib hydra.launcher.foo=1", "unknown setting of hydra.launcher: 'foo'"),
        ("plan study=harness_embedded --cfg=job", "plan takes no flags"),
        ("plan study=harness_embedded -m", "plan takes no flags"),
    ],
)
def test_what_is_said_of_launching_is_looked_at(arguments: str, expected: str, typed: Callable, tmp_path: Path) -> None:
    done = typed(*arguments.split(), "method=magnitude", "evaluation=[]", f"records={tmp_path / 'records'}")
    assert done.status == 2 and done.err.startswith("error: ") and done.err.count("\n") == 1, done.err
    assert expected in done.err
    assert not (tmp_path / "records").exists()


@pytest.mark.parametrize("option", ["records", "cache"])
def test_a_folder_inside_that_of_a_saved_model_is_refused(typed: Callable, tmp_path: Path, option: str) -> None:
    inside = {"records": f"records={tmp_path / 'kept' / 'deep'}", "cache": f"cache={tmp_path / 'kept'}"}[option]
    base = [f"records={tmp_path / 'records'}"] if option == "cache" else []
    done = typed("method=none", "evaluation=[]", f"save={tmp_path / 'kept'}", *base, inside)
    assert done.status == 2 and "lies inside save=" in done.err and not list(tmp_path.iterdir())


def test_retry_says_nothing_before_it_has_looked(typed: Callable, tmp_path: Path) -> None:
    study = ["study=harness_embedded", "model=embedded-llama", "method=none", f"records={tmp_path / 'records'}"]
    done = typed("retry", *study, "device=yes")
    assert (done.status, done.out) == (2, "") and done.err.startswith("error: ")


def test_a_command_refused_for_its_last_folder_leaves_none(typed: Callable, tmp_path: Path) -> None:
    records = f"records={tmp_path / 'deep' / 'records'}"
    done = typed("-m", "method=none", "evaluation=[]", records, "seed=0,1", "save=/proc/nowhere/${seed}")
    assert done.status == 2 and "cannot be written" in done.err and not list(tmp_path.iterdir())


def test_a_part_of_the_configuration_that_is_not_there(typed: Callable) -> None:
    done = typed("--cfg=all", "-p", "metod")
    assert (done.status, done.out) == (2, "") and done.err.startswith(
        "error: unknown package 'metod'; did you mean method"
    )
    assert "name: wanda" in typed("--cfg=job", "-p", "method").out
