"""Leases: one process at a point, the dead told from the living whatever the clocks say."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.record import lease
from harness.record.lease import Lease, LeaseTaken, Watch, leased, read, read_all, submitted
from harness.record.request import RequestMatcher
from harness.runtime.errors import UserError

POINT = "0123456789abcdef"
ACCEPTED = (("cpu", "auto"), ("float32",), (None, 32), (None, 32), (0,))
ANSWER = RequestMatcher("what", ACCEPTED)
HOLDER = """
import sys
from pathlib import Path
from harness.record.lease import leased
from harness.record.request import RequestMatcher
with leased(Path(sys.argv[1]), sys.argv[2], RequestMatcher("what", ((None,),) * 5)):
    print("held", flush=True)
    sys.stdin.read()
"""
RACER = """
import os, sys, time
from pathlib import Path
from harness.record import lease
from harness.record.request import RequestMatcher
lease.LOOK = 0.01
folder = Path(sys.argv[1])
for number in range(5):
    with lease.leased(folder, sys.argv[2], RequestMatcher("what", ((None,),) * 5)):
        alone = os.open(folder / "alone", os.O_CREAT | os.O_EXCL)  # fails if two are here
        time.sleep(0.01)
        os.close(alone)
        (folder / "alone").unlink()
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lease on the point until its input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path), POINT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def only(folder: Path) -> Lease:
    (found,) = read_all(folder)
    return found


def foreign(folder: Path) -> Lease:
    """The lease of a process that runs on another machine, as far as can be seen."""
    path = folder / lease.FOLDER / f"{POINT}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    owner = {"host": "elsewhere", "pid": 1, "start": "1", "place": "x", "token": "t", "since": "then"}
    path.write_text(json.dumps({"beat": "000000000000", "owner": owner, "answers": []}))
    return only(folder)


def test_a_claim_is_there_while_the_run_is_and_goes_with_it(tmp_path: Path) -> None:
    with leased(tmp_path, POINT, ANSWER):
        mine = only(tmp_path)
        assert mine.path == tmp_path / ".running" / f"{POINT}.json"
        assert mine.owner["pid"] == os.getpid()
        assert mine.matchers == (ANSWER,)
        assert not mine.is_lost()
        assert "process" in str(mine)
    assert not list(read_all(tmp_path))
    with pytest.raises(ZeroDivisionError), leased(tmp_path, POINT, ANSWER):
        raise ZeroDivisionError
    assert not list(read_all(tmp_path))


def test_its_counter_rises_and_it_can_be_read_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT", 0.001)
    with leased(tmp_path, POINT, ANSWER):
        texts: set[bytes] = set()
        while len(texts) < 3:
            texts.add(only(tmp_path).text)
    assert {json.loads(text)["owner"]["pid"] for text in texts} == {os.getpid()}


def test_the_claim_of_a_killed_process_is_lost_and_taken_over(other: subprocess.Popen[str], tmp_path: Path) -> None:
    assert not only(tmp_path).is_lost()
    with pytest.raises(LeaseTaken, match=f"process {other.pid}"), leased(tmp_path, POINT, ANSWER, Watch()):
        pass
    other.send_signal(signal.SIGKILL)
    while not only(tmp_path).is_lost():  # its parent has not asked for its status: it is a zombie
        time.sleep(0.01)
    with leased(tmp_path, POINT, ANSWER, Watch()):
        assert only(tmp_path).owner["pid"] == os.getpid()


def test_a_living_process_is_waited_for(
    other: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looks = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        other.communicate()  # it ends

    monkeypatch.setattr("harness.record.lease.time.sleep", sleep)
    with leased(tmp_path, POINT, ANSWER):
        assert looks == [lease.LOOK]
    assert f"waiting for another process that is at this point: process {other.pid}" in capsys.readouterr().err


@pytest.mark.parametrize("jump", [-1e9, 1e9])
def test_setting_the_clock_makes_no_living_claim_look_lost(
    jump: float, other: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + jump)
    os.utime(only(tmp_path).path, (now + jump, now + jump))
    assert not only(tmp_path).is_lost()
    assert not Watch().is_dead(only(tmp_path))
    other.kill()
    other.wait()
    assert only(tmp_path).is_lost()


def test_another_machine_is_watched_by_this_ones_steady_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("harness.record.lease.time.monotonic", lambda: now)
    watch, there = Watch(), foreign(tmp_path)
    for ahead in (-1e6, 1e6):  # whatever the times of the file say
        os.utime(there.path, (time.time() + ahead,) * 2)
        assert not watch.is_dead(there)
    now = lease.SILENT - 1
    assert not watch.is_dead(there)
    there.path.write_bytes(there.text.replace(b"000000000000", b"000000000001"))
    assert not watch.is_dead(only(tmp_path))
    now = 2 * lease.SILENT - 2
    assert not watch.is_dead(only(tmp_path))
    now += 2
    assert watch.is_dead(only(tmp_path))
    with leased(tmp_path, POINT, ANSWER, watch):
        assert only(tmp_path).is_here


def test_one_look_at_another_machine_goes_by_the_file_servers_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = foreign(tmp_path)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert not there.is_lost()
    written = there.path.stat().st_mtime
    os.utime(there.path, (written - lease.SILENT - 60,) * 2)
    assert there.is_lost()
    os.utime(there.path, (written + 1e6,) * 2)
    assert not there.is_lost()


def test_a_claim_that_was_never_finished_is_taken_over_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("harness.record.lease.time.monotonic", lambda: now)
    path = foreign(tmp_path).path
    for text in ("", "[]", '{"beat": "0", "owner": {}}'):
        path.write_text(text)
        watch = Watch()
        assert not list(read_all(tmp_path))
        with pytest.raises(LeaseTaken, match="unknown process"), leased(tmp_path, POINT, ANSWER, watch):
            pass
        now += lease.SILENT + 1
        with leased(tmp_path, POINT, ANSWER, watch):
            assert only(tmp_path).is_here
        path.parent.mkdir(exist_ok=True)


def test_a_claim_that_was_taken_over_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT", 0.001)
    with leased(tmp_path, POINT, ANSWER):
        only(tmp_path).path.unlink()
        there = foreign(tmp_path)  # this process slept, and another took its point
        time.sleep(0.01)
    assert read(there.path) == there


def test_of_many_processes_one_at_a_time_is_at_a_point(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    """All of them find the lease of a dead process first."""
    other.kill()
    other.wait()
    racers = [subprocess.Popen([sys.executable, "-c", RACER, str(tmp_path), POINT]) for _ in range(4)]
    assert [racer.wait() for racer in racers] == [0] * 4
    assert not list(read_all(tmp_path))


def test_a_folder_that_takes_no_claim_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".running").write_text("")
    with pytest.raises(UserError, match=r"claim of a run cannot be written to .*: File exists\."):
        leased(tmp_path, POINT, ANSWER).__enter__()
    (tmp_path / ".running").unlink()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("harness.record.lease.os.fsync", full)
    with pytest.raises(UserError, match=r"No space left on device\."):
        leased(tmp_path, POINT, ANSWER).__enter__()
    assert not list((tmp_path / ".running").glob("*.json"))


def test_files_that_are_no_claims_are_passed_over(tmp_path: Path) -> None:
    text = foreign(tmp_path).text
    for name in ("..json", "$(touch x).json", "0123.json", "0123456789ABCDEF.json"):
        (tmp_path / ".running" / name).write_bytes(text)
    assert [found.path.stem for found in read_all(tmp_path)] == [POINT]


@pytest.mark.parametrize(
    ("owner", "matchers"),
    [
        *(({"pid": pid}, []) for pid in ("abc", 10**30, -1, 0, True, None, [1])),
        ({"token": ["t"]}, []),
        ({"host": "\ud800"}, []),
        *(({}, matchers) for matchers in ([[["what"], []]], [["what", [[[]]] * 5]], [["what", [[None]]]], [3], 3)),
    ],
)
def test_a_damaged_claim_is_passed_over_and_stays(owner: dict[str, Any], matchers: Any, tmp_path: Path) -> None:
    path = foreign(tmp_path).path
    here = {"place": lease._place(), "pid": os.getpid()}
    content = json.loads(path.read_bytes())
    path.write_text(json.dumps(content | {"owner": content["owner"] | here | owner, "answers": matchers}))
    assert not list(read_all(tmp_path))
    assert str(read(path)) == "by an unknown process"


def test_what_is_no_file_is_no_claim_and_is_said_where_a_run_needs_its_place(tmp_path: Path) -> None:
    path = foreign(tmp_path).path
    path.write_text("[" * 200_000)
    assert not list(read_all(tmp_path))
    for make in (Path.mkdir, os.mkfifo):
        path.rmdir() if path.is_dir() else path.unlink()
        make(path)
        assert not list(read_all(tmp_path))
        with pytest.raises(UserError, match=f"cannot be written to .*: {path.name} is no file"):
            leased(tmp_path, POINT, ANSWER, Watch()).__enter__()
        assert path.exists()


def test_a_submission_stays_if_its_points_have_not_all_ended(tmp_path: Path) -> None:
    points = [RequestMatcher(name, ACCEPTED) for name in "ab"]
    ended: set[RequestMatcher] = set()
    with submitted(tmp_path, points, lambda: ended):
        assert only(tmp_path).is_submission
        assert not only(tmp_path).is_lost()
        ended.add(points[0])
    assert only(tmp_path).is_lost()
    with submitted(tmp_path, points[1:], lambda: ended):  # says all that the earlier one said
        assert only(tmp_path).matchers == (points[1],)
        ended.add(points[1])
    assert not list(read_all(tmp_path))
