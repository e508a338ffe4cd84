"""A study that is killed at any moment loses no finished point and ends in the table of an undisturbed one.

Five kills; HARNESS_KILLS=50 (make test-kills) is the whole test.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from harness.record import schema
from tests.safety.runner import STUDY, started

KILLS = int(os.environ.get("HARNESS_KILLS", "5"))
PLACES = ("replace", "half", "replaced", "unlink")
POINTS = 4
LIMIT = 300
"""Seconds after which a run hangs."""


def finished(folder: Path) -> dict[str, bytes]:
    """The content of every record that says it is done, by name; every file has to be one."""
    found = {}
    for path in (folder / "records").glob("*.json"):
        record = schema.read(path)
        assert record.status == "ok", record.reason
        found[path.name] = path.read_bytes()
    return found


def check_files(folder: Path) -> None:
    """Nothing below the records is half a file, temporary ones excepted; what was announced is there."""
    for path in (folder / "records").rglob("*.json"):
        if not any(part.endswith(".tmp") for part in path.parts):
            json.loads(path.read_text())
    for line in re.findall(r"^record: (.*)$", (folder / "log.txt").read_text(), re.MULTILINE):
        assert Path(line).is_file()


def numbers(content: bytes) -> dict[str, Any]:
    record = json.loads(content)
    told = record["allocation"].get("search", {}).get("generations", [])
    curve = [{key: value for key, value in one.items() if key != "seconds"} for one in told]
    return {key: record[key] for key in ("sites", "measures", "sparsity", "blocks", "config")} | {"curve": curve}


def table(folder: Path) -> str:
    return (folder / "tables" / STUDY / "embedded" / "table.md").read_text()


def ended(process: BaseProcess) -> int | None:
    process.join(LIMIT)
    return process.exitcode


def whole_run(folder: Path) -> None:
    """Run what is missing, to the end; what was finished is not run again."""
    before = finished(folder)
    (folder / "log.txt").write_text("")
    assert ended(started(folder)) == 0, (folder / "log.txt").read_text()
    log = (folder / "log.txt").read_text()
    assert f"{len(before)} cells done, {POINTS - len(before)} to run" in log
    assert finished(folder).items() >= before.items() and len(finished(folder)) == POINTS


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float, dict[str, int]]:
    """The folder of a run that nobody killed, its seconds, and how often it comes by each place."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert ended(started(folder, "nowhere")) == 0  # the server is there
    since = time.perf_counter()
    whole_run(folder)
    seconds = time.perf_counter() - since
    return folder, seconds, json.loads((folder / "calls.json").read_text())


def kills(draw: random.Random, seconds: float, places: dict[str, int]) -> Iterator[float | str]:
    """A moment, then a place, and so on; more than are asked for, as some come when the study is done."""
    for number in range(3 * KILLS):
        place = PLACES[number // 2 % len(PLACES)]
        yield f"{place}:{draw.randint(1, places[place])}" if number % 2 else draw.uniform(0.02, 0.95) * seconds


def killed(folder: Path, kill: float | str) -> bool:
    """Run with this kill; whether it came in time."""
    process = started(folder, kill if isinstance(kill, str) else None)
    if isinstance(kill, float):
        process.join(kill)
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
    code = ended(process)
    assert code in (0, -signal.SIGKILL), (folder / "log.txt").read_text()
    return code != 0


def test_a_killed_study_ends_as_an_undisturbed_one(
    undisturbed: tuple[Path, float, dict[str, int]], tmp_path: Path
) -> None:
    reference, seconds, places = undisturbed
    expected = {name: numbers(content) for name, content in finished(reference).items()}
    draw, hits, attempts = random.Random(0), 0, 0
    folder = tmp_path / "0"
    for number, kill in enumerate(kills(draw, seconds, places)):
        before = finished(folder)
        hits += killed(folder, kill)
        check_files(folder)
        after = finished(folder)
        assert after.items() >= before.items(), kill  # every finished point is there, bit for bit
        attempts += 1
        if hits == KILLS or len(after) == POINTS or attempts == 3:
            end(folder, reference, expected)
            folder, attempts = tmp_path / str(number + 1), 0
        if hits == KILLS:
            break
    print(f"{hits} of {number + 1} kills came before the end, in {len(list(tmp_path.iterdir()))} studies")
    assert hits == KILLS


def end(folder: Path, reference: Path, expected: dict[str, Any]) -> None:
    whole_run(folder)
    assert table(folder).replace(str(folder), "") == table(reference).replace(str(reference), "")
    for name, content in finished(folder).items():
        theirs = expected[name] | {"config": None}
        assert numbers(content) | {"config": None} == theirs
    assert not list(folder.rglob("blocks_*")), "finished blocks of a finished run"
    assert not list(folder.rglob("*.tmp")), "what killed writers left"
