"""Several processes on one study: what is told of points that somebody is at, and every point computed once."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness import compose
from harness.core.places import ROOT
from harness.prepare import prepare
from harness.record import schema
from harness.record.lease import leased, submitted
from harness.record.request import matcher_of, only, request_key
from harness.study import commands
from harness.study.plan import Files, attempts, has_finished, progress_of

STUDY = ["study=wanda_table3", "model=embedded-llama", "method=none,magnitude"]  # one dense point, three pruned ones
SLOW = """
import time
from dataclasses import dataclass
from pathlib import Path
from harness.catalogue import component
from harness.methods.magnitude import Magnitude

@component("method", "slow")
@dataclass(frozen=True)
class Slow(Magnitude):
    def prune(self, *arguments):
        with (Path(__file__).parent / "pruned").open("a") as file:
            file.write("x")
        time.sleep(0.2)
        return super().prune(*arguments)
"""
HOLDER = """
import json, sys
from pathlib import Path
from harness.record.lease import leased
from harness.record.request import RequestMatcher
what, accepted = json.loads(sys.argv[3])
with leased(Path(sys.argv[1]), sys.argv[2], RequestMatcher(what, tuple(map(tuple, accepted)))):
    print("held", flush=True)
    sys.stdin.read()
"""


def start(*arguments: str) -> subprocess.Popen[str]:
    """`python -m harness` as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "harness", *arguments],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def part(tmp_path: Path) -> list[str]:
    return [*STUDY, f"records={tmp_path / 'records'}", "evaluation_limit=2"]


@contextmanager
def at(overrides: list[str], number: int) -> Iterator[subprocess.Popen[str]]:
    """Another process that has claimed a point of a study, by its number."""
    cfg = commands.study_of(overrides).points[number].cfg
    ready = prepare(cfg)
    matcher = matcher_of(ready.config, ready.facts["defaults"])
    told = json.dumps([matcher.what, matcher.accepted])
    call = [sys.executable, "-c", HOLDER, str(cfg.records), ready.fingerprint, told]
    with subprocess.Popen(call, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.fixture(autouse=True)
def _registered() -> None:
    compose.register()


def test_status_and_plan_tell_who_is_at_a_point_and_retry_leaves_it(typed: Callable, tmp_path: Path) -> None:
    mine = part(tmp_path)
    with at(mine, 1) as other:
        running = f"running model=embedded-llama sparsity=0.5 method=magnitude  (process {other.pid} on "
        assert running in typed("plan", *mine).out
        told = typed("status", *mine).out
        assert told.splitlines() == [line for line in told.splitlines() if line.startswith(running)] + [
            "3 to do, 1 running"
        ]
        retried = typed("retry", *mine)
        assert "ran 3 of 3 cells" in retried.out
        assert retried.status == 1  # the table is not whole
        assert "| running" in typed("tables", *mine).out
        other.send_signal(signal.SIGKILL)
        while "1 lost" not in (told := typed("status", *mine).out):
            time.sleep(0.1)
    assert re.search(r"lost    model=.* method=magnitude  \(claimed by process .*, and never ended\)", told)
    retried = typed("retry", *mine)
    assert "0 failed and 1 lost points to run again\n" in retried.out
    assert retried.status == 0
    assert "4 done" in typed("status", *mine).out


def test_what_was_submitted_and_never_ended_is_lost(typed: Callable, tmp_path: Path) -> None:
    mine = part(tmp_path)
    study = commands.study_of(mine)
    matchers = [only(request_key(point.cfg.composed)) for point in study.points[:2]]
    with submitted(study.records, matchers, set):
        assert [item.state for item in progress_of(study)] == ["queued", "queued", "to do", "to do"]
        assert (
            "0 failed and 0 lost points to run again, and 2 without" in typed("retry", *mine, "sparsity=2of4,4of8").out
        )
    assert [item.state for item in progress_of(study)] == ["lost", "lost", "done", "done"]
    assert "(submitted by process" in typed("status", *mine).out
    assert "0 failed and 2 lost points to run again\n" in typed("retry", *mine).out
    assert "4 done" in typed("status", *mine).out


@pytest.mark.parametrize("jump", [-1e8, 1e8])
def test_setting_the_clock_changes_no_state(
    jump: float, typed: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = part(tmp_path)
    typed(*mine, "method=none")
    with at(mine, 1):
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + jump)
        assert [item.state for item in progress_of(commands.study_of(mine))] == ["done", "running", "to do", "to do"]
        assert "1 cells done, 0 to run" in typed(*mine, "method=none").out


def test_what_was_forced_elsewhere_counts_by_its_attempts(typed: Callable, options: list[str]) -> None:
    """Not by the times of files: the clock of another machine, or of this one, may have been set."""
    path = Path(typed(*options).out.strip().removeprefix("record: "))
    cfg = compose.compose_run([*options, "force=true"])
    before = attempts([cfg])
    assert not has_finished(cfg, before, Files())
    schema.write(dataclasses.replace(schema.read(path), attempt=2), path.parent)
    os.utime(path, (0, 0))
    assert has_finished(cfg, before, Files())


def test_a_study_goes_on_with_other_points_and_comes_back(typed: Callable, tmp_path: Path) -> None:
    mine = part(tmp_path)
    with at(mine, 0) as other:
        study = start(*mine)
        while len(list((tmp_path / "records").glob("*.json"))) < 3:  # all but the one that is claimed
            assert study.poll() is None
            time.sleep(0.1)
        other.communicate()  # it ends without a record
    out, said = study.communicate()
    assert study.returncode == 0
    assert said.count("another process is at this point") == 1
    assert [line.split(":")[0] for line in out.splitlines() if line.startswith("[")][-1].endswith("method=none")
    assert "ran 4 of 4 cells" in out


def test_two_processes_on_one_study_compute_every_point_once(tmp_path: Path) -> None:
    both = [start(*part(tmp_path)) for _ in range(2)]
    told = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert sum(int(ran) for out, _ in told for ran in re.findall(r"ran (\d) of 4 cells", out)) == 4
    first, second = (out[out.index("###") :] for out, _ in told)
    assert first == second
    records = [record for _, record in schema.read_all(tmp_path / "records")]
    assert [(record.status, record.attempt) for record in records] == [("ok", 1)] * 4
    assert not list((tmp_path / "records" / ".running").glob("*.json"))


@pytest.mark.parametrize("sweep", [[], ["-m"]])
def test_two_processes_on_one_point_compute_it_once(sweep: list[str], options: list[str], tmp_path: Path) -> None:
    plugin = tmp_path / "slow.py"
    plugin.write_text(SLOW)
    both = [start(*sweep, *options, f"plugins={plugin}", "method=slow") for _ in range(2)]
    told = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    ((path, record),) = schema.read_all(tmp_path / "records")
    assert record.attempt == 1
    assert [out.splitlines()[-1] for out, _ in told] == [f"record: {path}"] * 2
    matrices = len(schema.read(path).sites)
    assert (tmp_path / "pruned").read_text() == "x" * matrices


def test_a_failed_claim_is_one_sentence(typed: Callable, options: list[str], tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / ".running").write_text("")
    refused = typed(*options)
    assert refused.status == 2
    assert refused.err.startswith("error: the claim of a run cannot be written to ")
    assert refused.err.count("\n") == 1


def test_a_claim_is_held_while_a_point_runs(
    typed: Callable, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness import execute

    seen = []

    def look(*_: object) -> None:
        seen.extend(path.stem for path in (tmp_path / "records" / ".running").glob("*.json"))
        raise ZeroDivisionError

    monkeypatch.setattr(execute, "compute", look)
    assert typed(*options).status == 1
    ((path, record),) = schema.read_all(tmp_path / "records")
    assert seen == [record.fingerprint]
    assert not list(path.parent.glob(".running/*.json"))
    with leased(path.parent, record.fingerprint, matcher_of(record.config, {})):
        assert typed("status", "study=wanda_table3", f"records={path.parent}").status == 0
