"""Points as jobs: what is grouped, what is frozen, what one failing point costs, who can read a launcher's files."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import types
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import compose, execute, groups
from harness.prepare import prepare
from harness.record.lease import leased
from harness.record.request import matcher_of
from harness.runtime.errors import UserError
from harness.study import commands, grid, jobs, launch
from harness.study.estimate import estimate

STUDY = {
    "title": "A study of a test",
    "table": {"columns": "task", "rows": ["model", "sparsity", "method"], "figure": "curves"},
    "grids": [{"method": ["none"]}, {"method": ["magnitude", "wanda"], "sparsity": [0.5, 0.25]}],
    "scales": {"embedded": {"axes": {"model": ["hf"]}}},
}


@pytest.fixture(autouse=True)
def _components() -> None:
    compose.register()


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of conf/ with a study of five points in it."""
    folder = tmp_path / "conf"
    shutil.copytree(groups.CONF, folder)
    (folder / "study" / "test_table1.yaml").write_text(yaml.safe_dump(STUDY))
    (folder / "cluster" / "serial.yaml").write_text("# @package _global_\ncluster: {jobs: 2}\n")
    monkeypatch.setattr(groups, "CONF", folder)
    monkeypatch.setattr(grid, "CONF", folder)
    return folder


@pytest.fixture
def study(conf: Path, options: list[str]) -> grid.Study:
    return commands.study_of(["study=test_table1", "cluster=serial", *options])


def _records(study: grid.Study) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in study.records.glob("*.json")]


@pytest.mark.parametrize("name", ["wanda_table3", "sparsellm_figure5"])
def test_every_point_is_in_one_job_of_one_model_and_jobs_cost_alike(name: str) -> None:
    points = grid.load_study(name, "paper").points
    configs = {number: point.cfg for number, point in enumerate(points) if point.cfg}
    costs = {number: guess.seconds for number, cfg in configs.items() if (guess := estimate(cfg, "cuda"))}
    asked = {
        number: json.dumps([cfg.composed["model"], cfg.composed["calibration"]]) for number, cfg in configs.items()
    }
    longest = max(costs.values())
    for count in (1, 7, 16, 64, 1000):
        groups = jobs.grouped(configs, costs, count)
        assert sorted(number for group in groups for number in group) == sorted(configs)
        own: dict[str, list[float]] = {}
        for group in groups:
            [model] = {asked[number] for number in group}
            own.setdefault(model, []).append(sum(costs[number] for number in group))
        assert len(groups) <= max(count, len(own))
        for spent in own.values():
            assert max(spent) <= sum(spent) / len(spent) + longest
        if count > len(own):
            assert max(map(max, own.values())) <= sum(costs.values()) / (count - len(own)) + longest


def test_the_longest_job_is_as_short_as_it_can_be(conf: Path) -> None:
    """Against all ways to cut the same order."""
    (conf / "study" / "test_table1.yaml").write_text(yaml.safe_dump(STUDY | {"grids": [{"seed": list(range(7))}]}))
    points = grid.load_study("test_table1", "embedded").points
    configs = {number: point.cfg for number, point in enumerate(points) if point.cfg}
    costs = dict(enumerate([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0]))
    for count in (1, 2, 3, 4, 7):
        groups = jobs.grouped(configs, costs, count)
        longest = max(sum(costs[number] for number in group) for group in groups)
        cuts = itertools.combinations(range(1, 7), count - 1)
        ways = ([*itertools.pairwise((0, *cut, 7))] for cut in cuts)
        assert longest == min(max(sum(costs[n] for n in range(*span)) for span in way) for way in ways)


def test_the_larger_model_gets_more_jobs() -> None:
    points = grid.load_study("wanda_table3", "paper", ["model=llama-7b,llama-65b"]).points
    configs = {number: point.cfg for number, point in enumerate(points) if point.cfg}
    costs = {number: guess.seconds for number, cfg in configs.items() if (guess := estimate(cfg, "cuda"))}
    models = [configs[group[0]].model.name for group in jobs.grouped(configs, costs, 5)]
    assert len(models) <= 5
    assert models.count("llama-65b") > models.count("llama-7b") >= 1


def test_a_job_begins_dense_and_goes_on_by_seed_method_and_sparsity(conf: Path) -> None:
    axes = {"method": ["wanda", "none", "magnitude"], "sparsity": [0.7, 0.5], "seed": [1, 0]}
    scales = {"embedded": {"axes": {"model": ["embedded-llama"]}}}
    (conf / "study" / "test_table1.yaml").write_text(yaml.safe_dump(STUDY | {"grids": [axes], "scales": scales}))
    points = grid.load_study("test_table1", "embedded").points
    configs = {number: point.cfg for number, point in enumerate(points) if point.cfg}
    [job] = jobs.grouped(configs, dict.fromkeys(configs, 1.0), 1)
    told = [(configs[number].composed["method"]["name"], configs[number].seed, configs[number].asked) for number in job]
    assert [method for method, _, _ in told[:4]] == ["none"] * 4
    assert told[4:] == [
        (method, seed, sparsity) for seed in (0, 1) for method in ("magnitude", "wanda") for sparsity in (0.5, 0.7)
    ]


def test_without_a_number_there_is_one_job_a_point(study: grid.Study) -> None:
    configs = {number: point.cfg for number, point in enumerate(study.points) if point.cfg}
    assert len(jobs.grouped(configs, dict.fromkeys(configs, 1.0), None)) == len(configs)
    with pytest.raises(UserError, match="jobs=0 has to be a whole number"):
        launch.launch(dataclasses.replace(study, launcher=("cluster.jobs=0",)), [0])


def test_queued_jobs_run_what_was_submitted(
    study: grid.Study, conf: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Between submission and start, all of conf/ goes away and the study asks for something else."""
    through = compose.through_hydra

    def later(*arguments: Any) -> int:
        (conf / "study" / "test_table1.yaml").write_text(yaml.safe_dump(STUDY | {"grids": [{"method": ["sparsegpt"]}]}))
        conf.rename(conf.parent / "gone")
        groups.options.cache_clear()
        groups._main.cache_clear()
        return through(*arguments)

    monkeypatch.setattr(compose, "through_hydra", later)
    launch.launch(study, range(5))
    records = _records(study)
    assert {record["status"] for record in records} == {"ok"}
    asked = {(record["config"]["method"]["name"], record["sparsity"]["asked"]) for record in records}
    assert asked == {("none", 0), *((method, share) for method in ("magnitude", "wanda") for share in (0.5, 0.25))}
    assert "2 jobs, frozen in" in capfd.readouterr().out


def test_a_failing_point_does_not_stop_the_job(
    study: grid.Study, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = jobs.prepare

    def prepare(cfg: Any) -> Any:
        if cfg.method is None:
            raise UserError("a mistake that shows on the machine of the job.")
        if cfg.asked == 0.25:
            raise OSError("a broken disk")
        return whole(cfg)

    monkeypatch.setattr(jobs, "prepare", prepare)
    launch.launch(study, range(5))
    said = capfd.readouterr().err
    assert "error: at the point model=hf method=none: a mistake that shows on the machine of the job." in said
    assert said.count("method=wanda: OSError: a broken disk") == 1
    assert sorted(record["config"]["method"]["name"] for record in _records(study)) == ["magnitude", "wanda"]


def test_a_job_that_is_stopped_leaves_its_finished_points_and_says_what_is_lost(
    study: grid.Study,
    typed: Callable,
    options: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run, ran = jobs.execute, []

    def execute(*arguments: Any, **named: Any) -> Any:
        ran.append(run(*arguments, **named))
        if len(ran) == 2:
            raise SystemExit(-1)  # as submitit does when the time is over
        return ran[-1]

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "execute", execute)
        launch.launch(study, range(5))
    assert "lost: job 0 ended before" in capfd.readouterr().err
    assert len(_records(study)) == 2
    again = typed("retry", "study=test_table1", "cluster=serial", *options)
    assert again.status == 0
    assert "and 3 without a current record" in again.out
    assert len(_records(study)) == 5


def test_a_job_that_is_queued_again_does_not_force_twice(conf: Path, options: list[str], tmp_path: Path) -> None:
    forced = commands.study_of(["study=test_table1", "method=none", "force=true", *options])
    points = [(str(point), point.cfg) for point in forced.points if point.cfg]

    def attempts() -> list[int]:
        return [json.loads(Path(path).read_text())["attempt"] for path in jobs.run_job(tmp_path, 0)]

    jobs.freeze(tmp_path, [points])
    assert attempts() == attempts() == [1]
    jobs.freeze(tmp_path, [points])  # another submission
    assert attempts() == attempts() == [2]


def test_a_point_that_another_process_is_at_comes_last(
    study: grid.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    points = [(str(point), point.cfg) for point in study.points if point.cfg]
    labels = [label for label, _ in points]
    jobs.freeze(tmp_path, [points])
    ready = prepare(points[1][1])
    waits: list[jobs.Ended] = []

    def sleep(_: float) -> None:
        waits.append(jobs.ended(tmp_path, 0))
        other.close()  # it ends without a record

    monkeypatch.setattr(execute, "time", types.SimpleNamespace(sleep=sleep))
    with ExitStack() as other:
        other.enter_context(leased(study.records, ready.fingerprint, matcher_of(ready.config, ready.facts["defaults"])))
        paths = jobs.run_job(tmp_path, 0)
    [before] = waits  # nothing waits while there is something else to do
    assert (len(before.records), before.lost) == (4, [labels[1]])
    after = jobs.ended(tmp_path, 0)
    assert [item["point"] for item in after.ended] == [*labels[:1], *labels[2:], labels[1]]
    assert (after.records, after.lost, after.errors) == (paths, [], [])
    said = capfd.readouterr()
    assert said.err.count("it comes last") == 1 and f"[5/5] {labels[1]}: ok" in said.out


def test_what_launchers_write_is_private(study: grid.Study, tmp_path: Path) -> None:
    launch.launch(study, [0])
    [sweep] = [path for path in study.records.iterdir() if path.is_dir() and path.name == ".sweep"]
    assert sweep.stat().st_mode & 0o777 == 0o700
    sweep.chmod(0o755)
    assert launch.private_folder(study.records) == sweep.resolve()
    assert sweep.stat().st_mode & 0o777 == 0o700
    assert not [path for path in study.records.rglob("*.pkl") if sweep not in path.parents]


def test_a_launchers_folder_is_nobody_elses_and_of_a_plain_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / ".sweep").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="nobody else can open"):
        launch.private_folder(tmp_path / "linked")
    with monkeypatch.context() as patch:
        patch.setattr(launch.os, "getuid", lambda: 4711)
        with pytest.raises(UserError, match="nobody else can open"):
            launch.private_folder(tmp_path / "theirs")
    for name in ("a%j", "a\nrm b", "${x}", "it's"):
        with pytest.raises(UserError, match="in its name"):
            launch.private_folder(tmp_path / name)
    assert launch.private_folder(tmp_path / "up" / ".." / "a b").parent == tmp_path / "a b"


def test_names_in_a_configuration_stay_in_the_folder(study: grid.Study, tmp_path: Path) -> None:
    """A label, a study, a model may be called anything: files of a job are named by numbers."""
    cfg = study.points[0].cfg
    assert cfg is not None
    jobs.freeze(tmp_path / "jobs", [[("../../escaped; touch x", cfg)]])
    jobs.run_job(tmp_path / "jobs", 0)
    assert {path.name for path in (tmp_path / "jobs").iterdir()} == {"0.json", "0.ended.json"}
    assert jobs.ended(tmp_path / "jobs", 0).lost == []
    with pytest.raises(UserError, match="unknown study"):
        commands.study_of(["study=../test_table1", "cluster=serial"])


@pytest.mark.parametrize("cluster", ["local", "serial"])
def test_a_sweep_runs_what_was_checked(
    cluster: str, typed: Callable, options: list[str], conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Edits of `conf/` while its first point runs reach no later one."""

    def editing(*arguments: Any, **named: Any) -> Any:
        text = (conf / "config.yaml").read_text()
        assert "\nsparsity: 0.5 " in text or "\nsparsity: 0.9 " in text
        (conf / "config.yaml").write_text(text.replace("\nsparsity: 0.5 ", "\nsparsity: 0.9 "))
        return run(*arguments, **named)

    run = execute.execute
    monkeypatch.setattr("harness.command.execute", editing)
    monkeypatch.setattr("harness.study.jobs.execute", editing)
    done = typed("-m", *options, "method=magnitude,wanda", f"cluster={cluster}")
    assert (done.status, done.out.count("record: ")) == (0, 2)
    records = [json.loads(path.read_text()) for path in (tmp_path / "records").glob("*.json")]
    assert [record["config"]["sparsity"] for record in records] == [0.5, 0.5]


def test_a_launcher_that_is_not_there_is_one_sentence(
    typed: Callable, options: list[str], conf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (conf / "cluster" / "none.yaml").write_text("# @package _global_\ndefaults: [override /hydra/launcher: nosuch]\n")
    for arguments in (["study=test_table1"], ["-m"]):
        refused = typed(*arguments, *options, "cluster=none")
        assert (refused.status, refused.err.count("\n")) == (2, 1)
        assert "the launcher nosuch is not installed: pip install" in refused.err
    refused = typed("-m", *options, "cluster=joblib", "hydra.launcher.n_jobs=0")
    assert (refused.status, refused.err.count("\n")) == (2, 1) and "n_jobs=0 starts no process" in refused.err
    monkeypatch.setattr(launch.shutil, "which", lambda command: None)
    with pytest.raises(UserError, match="not on this machine"):
        launch.around({"_target_": "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"})
