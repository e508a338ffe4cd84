"""Whatever git does, a number keeps its record, and nobody waits for it twice."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.record import provenance
from tests.commands import but

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    provenance.commit.cache_clear()
    yield
    provenance.commit.cache_clear()


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a git that does what a line of shell says, and writes down that it was asked."""

    def make(does: str) -> None:
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "git").write_text(f"#!/bin/sh\necho >> {tmp_path / 'asked'}\n{does}\n")
        (tmp_path / "bin" / "git").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
        monkeypatch.delenv("HARNESS_COMMIT", raising=False)

    return make


@pytest.mark.parametrize(
    ("does", "expected"),
    [
        ("sleep 60", (None, None)),
        ("exit 1", (None, None)),
        ("kill -9 $$", (None, None)),
        (r"printf '\377\376'", ("\ufffd\ufffd", True)),
        ('[ "$1" = rev-parse ] && echo abc || sleep 60', ("abc", None)),
        ('[ "$1" = rev-parse ] && echo abc || exit 0', ("abc", False)),
    ],
)
def test_a_git_that_does_what_it_wants(
    does: str, expected: tuple[str | None, bool | None], git: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(does)
    monkeypatch.setattr(provenance, "WAIT", 0.5)
    assert tuple(provenance.commit().values()) == expected


def test_no_git_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HARNESS_COMMIT", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.commit() == {"commit": None, "dirty": None}


def test_the_commit_is_that_of_this_folder_whatever_the_environment_is_about(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HARNESS_COMMIT", raising=False)
    here = provenance.commit()
    provenance.commit.cache_clear()
    subprocess.run(["git", "init", "-q", tmp_path / "other"], check=True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    assert provenance.commit() == here


def test_a_slow_git_is_asked_once_before_the_first_point_and_loses_none(
    git: Callable, typed: Callable, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git("sleep 60")
    monkeypatch.setattr(provenance, "WAIT", 0.5)
    done = typed("-m", *but(options, "evaluation=[]", "method=none,magnitude"))
    assert done.status == 0 and done.out.count("record: ") == 2, done.err
    assert done.record["provenance"]["commit"] is None
    assert len((tmp_path / "asked").read_text().splitlines()) == 1
