"""Printing costs no point: streams that are closed, full or no longer read, as a process has them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TALKS = """
import os, sys
from harness.runtime import streams
streams.secure()
for line in range(2000):
    print("±✓", line, flush=line % 2 == 0)
    print("±✓", line, file=sys.stderr)
print(sys.stdin.read(), end="", flush=True)
with open(sys.argv[1], "w") as file:
    assert file.fileno() > 2
    os.write(1, b"from below Python")
    os.write(2, b"from below Python")
    file.write("the end")
"""
SWEEP = "{python} -m harness -m model=hf model.path={tiny} model.window=32 'evaluation=[]' method=magnitude"


CLOSED = ["2>&-", ">&-", ">&- 2>&- <&-", "<&-"]


@pytest.mark.parametrize("how", [*CLOSED, "> /dev/full", "> /dev/full 2> /dev/full", "2> /dev/full", "| head -1"])
def test_a_program_goes_on_to_its_end(how: str, tmp_path: Path) -> None:
    (tmp_path / "talks.py").write_text(TALKS)
    command = f"set -o pipefail; {sys.executable} {tmp_path / 'talks.py'} {tmp_path / 'end'} {how}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(["bash", "-c", command], env=environment, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 0
    assert (tmp_path / "end").read_text() == "the end"


def test_a_terminal_that_knows_no_such_letter_is_told_which(tmp_path: Path) -> None:
    (tmp_path / "talks.py").write_text(TALKS)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    call = [sys.executable, tmp_path / "talks.py", tmp_path / "end"]
    done = subprocess.run(call, env=environment, input="typed", capture_output=True, check=True, text=True)
    assert done.stdout.startswith("\\xb1\\u2713 0\n") and done.stdout.endswith("1999\ntypedfrom below Python")
    assert len(done.stdout.splitlines()) == len(done.stderr.splitlines()) == 2001


@pytest.mark.parametrize("how", [">&- 2>&- <&-", "> /dev/full 2> /dev/full", "| true"])
def test_a_sweep_loses_no_point(how: str, tiny: Path, tmp_path: Path) -> None:
    records = tmp_path / "records"
    command = SWEEP.format(python=sys.executable, tiny=tiny) + f" seed=0,1 records={records} {how}"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    written = [json.loads(path.read_text()) for path in records.glob("*.json")]
    assert sorted(record["config"]["seed"] for record in written) == [0, 1]
    assert {record["status"] for record in written} == {"ok"}
