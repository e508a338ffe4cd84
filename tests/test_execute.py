"""Nothing stops a sweep but Ctrl-C: whatever a point does, it has a record or a sentence, and the next one runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import execute
from harness.runtime.errors import UserError
from tests.commands import but

ENDS = """
import sys
from dataclasses import dataclass
from harness.catalogue import component

class Panic(BaseException):
    pass

def requeued():
    exec("import sys; sys.exit(-1)", {"__name__": "submitit.core.job_environment"})

def raising(error):
    raise error

HOW = {
    "exit": lambda: sys.exit(3),
    "panic": lambda: raising(Panic("index out of bounds")),
    "generator": lambda: raising(GeneratorExit("x")),
    "stop": lambda: raising(KeyboardInterrupt()),
    "requeued": requeued,
}

@component("method", "ends")
@dataclass(frozen=True)
class Ends:
    how: str = "exit"
    statistic = None

    def prune(self, weight, seen, pattern):
        HOW[self.how]()
"""


@pytest.fixture
def ends(options: list[str], tmp_path: Path) -> list[str]:
    (tmp_path / "ends.py").write_text(ENDS)
    return [*but(options, "evaluation=[]"), f"plugins={tmp_path / 'ends.py'}"]


def records(folder: Path) -> dict[str, str]:
    """How each method of a record ended, by what it does."""
    found = [json.loads(path.read_text()) for path in (folder / "records").glob("*.json")]
    methods = [record["config"]["method"] for record in found]
    return {method.get("how", method["name"]): record["reason"] for method, record in zip(methods, found, strict=True)}


def test_a_panic_below_python_and_an_exit_are_failed_points(ends: list[str], typed: Callable, tmp_path: Path) -> None:
    done = typed("-m", *ends, "method=ends", "method.how=exit,generator,panic")
    assert done.status == 1 and done.out.count("record: ") == 3
    assert records(tmp_path) == {
        "exit": "SystemExit: 3",
        "generator": "GeneratorExit: x",
        "panic": "Panic: index out of bounds",
    }


def test_the_next_point_runs(ends: list[str], typed: Callable, tmp_path: Path) -> None:
    done = typed("-m", *ends, "method=ends,magnitude")
    assert done.status == 1 and done.out.count("record: ") == 2
    assert records(tmp_path) == {"exit": "SystemExit: 3", "magnitude": ""}


def test_a_single_run_that_exits_is_a_failed_record(ends: list[str], typed: Callable, tmp_path: Path) -> None:
    assert typed(*ends, "method=ends").status == 1
    assert records(tmp_path) == {"exit": "SystemExit: 3"}


def test_ctrl_c_stops_a_sweep(ends: list[str], typed: Callable, tmp_path: Path) -> None:
    stopped = typed("-m", *ends, "method=ends", "method.how=stop,exit")
    assert stopped.status == 1 and stopped.err.endswith("interrupted\n")
    assert records(tmp_path) == {"stop": "interrupted"}


def test_a_job_that_its_launcher_queued_again_ends(ends: list[str], typed: Callable, tmp_path: Path) -> None:
    try:
        done = typed("-m", *ends, "method=ends", "method.how=requeued,exit")
    except SystemExit:
        pass
    else:
        pytest.fail(f"status {done.status}: {done.out}{done.err}")
    assert records(tmp_path) == {}


@pytest.mark.parametrize("error", [UserError("the disk is full."), OSError(5, "Input/output error"), MemoryError()])
def test_a_point_whose_record_cannot_be_written_loses_no_other(
    error: Exception, options: list[str], typed: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = execute.schema.write

    def refuses(record, folder):
        if record.config["seed"] == 0:
            raise error
        return write(record, folder)

    monkeypatch.setattr(execute.schema, "write", refuses)
    done = typed("-m", *but(options, "evaluation=[]"), "method=magnitude", "seed=0,1")
    assert done.status == 1 and done.out.count("record: ") == 1 and done.record["config"]["seed"] == 1
    assert "error: at the point " in done.err and "seed=0" in done.err
