"""A sweep through a real SLURM of one node: a job is killed, one out of time, one queued again; the table is equal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest

from tests.cluster.one_node import OneNode, one_node, wait_for, why_not

ROOT = Path(__file__).parent.parent.parent
POINTS = ["study=harness_embedded", "method=magnitude,sparsegpt", "calibration.windows=4", "evaluation_limit=2"]
SLURM = ["cluster=slurm", "hydra.launcher.gpus_per_node=null", "hydra.launcher.mem_gb=null"]
SLURM += ["hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=10", "hydra.launcher.max_num_timeout=1"]
WHY_NOT = why_not() or ("" if find_spec("submitit") else "submitit is not installed (the cluster extra)")


@contextmanager
def _started(folder: Path, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A command over the study, its records below the folder, what it says in files beside them."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "harness", *arguments, *POINTS, f"records={folder / 'records'}"]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=out, stderr=err, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _ran(folder: Path, *arguments: str, **environment: str) -> int:
    with _started(folder, *arguments, **environment) as process:
        return process.wait(120)


def _lines(folder: Path, start: str) -> list[str]:
    """What the last command said, here or there, that starts so."""
    said = (folder / "out").read_text() + (folder / "err").read_text()
    return [line for line in said.splitlines() if line.startswith(start)]


def _table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "tables" / "harness_embedded" / "embedded" / "table.csv")


def _disturb(slurm: OneNode, records: Path) -> None:
    """Halt job 0 until its time is over, kill job 1 after its first point, tell job 2 that its time is over."""
    wait_for(lambda: bool(_process(records, 0)), "job 0", 60)
    os.kill(_process(records, 0), signal.SIGSTOP)
    slurm.ask("scontrol", "update", f"JobId={min(slurm.jobs)}", "TimeLimit=0")  # SLURM looks every 30 s
    [submission] = (records / ".sweep" / "harness_embedded").iterdir()
    wait_for((submission / "1.ended.json").exists, "the first point of job 1", 60)
    os.kill(_process(records, 1), signal.SIGKILL)
    wait_for((submission / "2.ended.json").exists, "the first point of job 2", 60)
    os.kill(_process(records, 2), signal.SIGUSR2)


def _process(records: Path, job: int) -> int:
    """The process of a job, or 0 while it has none."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        ours = command[1:4] == [b"-u", b"-m", b"submitit.core._submit"] and str(records).encode() in command[4]
        if ours and f"SLURM_ARRAY_TASK_ID={job}".encode() in variables:
            return int(folder.name)
    return 0


@pytest.mark.slurm
@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
def test_lost_jobs_are_said_and_their_points_run_when_asked_again(tmp_path: Path) -> None:
    cluster, here = tmp_path / "cluster", tmp_path / "here"
    records = cluster / "records"
    with one_node() as slurm:
        with _started(cluster, *SLURM, "cluster.jobs=4", **slurm.environment) as first, _started(here) as local:
            _disturb(slurm, records)
            assert local.wait(120) == 0
            assert first.wait(240) == 1
        said = (cluster / "err").read_text()
        assert "Traceback" not in said
        assert "lost: job 0 ended before 3 of its 3 points" in said
        assert "lost: job 1 ended before" in said
        assert "lost: job 2" not in said  # it was queued again, and went on
        assert "lost: job 3" not in said
        assert "| embedded-opt   | sparsegpt |" in (cluster / "out").read_text()  # the table is made all the same
        assert (records / ".sweep").stat().st_mode & 0o777 == 0o700
        done = {path: path.read_bytes() for path in records.glob("*.json")}
        assert {Path(line[8:]) for line in _lines(cluster, "record: ")} <= set(done)
        assert 7 <= len(done) <= 8  # of 12: three in each of the jobs 2 and 3, and one or two in job 1
        assert _ran(cluster, *SLURM, "cluster.jobs=1", **slurm.environment) == 0
    assert f"{len(done)} cells done, {12 - len(done)} to run" in (cluster / "out").read_text()
    assert {path.name for path in records.glob("*.json")} == {path.name for path in (here / "records").glob("*.json")}
    assert {path: path.read_bytes() for path in done} == done  # what was there was not made again
    pd.testing.assert_frame_equal(_table(cluster), _table(here), check_exact=True)


@pytest.mark.slurm
@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
def test_a_sweep_is_a_frozen_job_a_point(options: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "harness", "-m", *options, "sparsity=0.5,0.6", *SLURM]
    with one_node() as slurm:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **slurm.environment}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert "2 jobs, frozen in" in done.stdout and "Traceback" not in done.stderr
    records = {str(path) for path in (tmp_path / "records").glob("*.json")}
    assert len(records) == 2
    assert {line[8:] for line in done.stdout.splitlines() if line.startswith("record: ")} == records


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose programs stand in for SLURM's."""
    pytest.importorskip("submitit", reason="submitit is not installed (the cluster extra)")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


def _program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_a_job_has_ended_once_the_queue_does_not_hold_it(commands: Path) -> None:
    from harness.study.slurm import QueueWatcher

    watcher = QueueWatcher()
    _program(commands / "squeue", "exit 1")  # the controller does not answer
    assert not watcher.is_done("7_0", mode="force")
    _program(commands / "squeue", "echo 7_0; echo 7_1; echo 70_2")
    assert [watcher.is_done(job, mode="force") for job in ("7_0", "7_1", "7_2")] == [False, False, True]
    _program(commands / "squeue", "exit 1")
    assert [watcher.is_done(job, mode="force") for job in ("7_0", "7_2")] == [False, True]


def test_what_slurm_says_of_jobs_it_does_not_take_is_one_sentence(commands: Path) -> None:
    from submitit import AutoExecutor

    from harness.runtime.errors import UserError
    from harness.study.slurm import patient

    _program(
        commands / "sbatch", "echo 'sbatch: error: a detail' >&2; echo 'sbatch: error: no such account' >&2; exit 1"
    )
    _program(commands / "srun", "exit 0")
    with pytest.raises(UserError, match="SLURM refused the jobs: no such account; adapt"), patient():
        AutoExecutor(folder=commands / "jobs", cluster="slurm").submit(print)
