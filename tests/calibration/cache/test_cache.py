"""Cached values: one file per identity and settings, whole or not at all; and traces that are computed once."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny, windows

from harness.calibration.cache.values import Cache, make_room
from harness.calibration.levels.database import LevelDatabase
from harness.calibration.views import model as probing
from harness.calibration.views.model import LiveModelView
from harness.models.decoder import decoder_of

MODEL = {"weights": "abc", "calibration": {"windows": 2}}


def test_what_was_written_is_read_again_by_another_process(tmp_path: Path) -> None:
    Cache(tmp_path / "new", MODEL).entry("msp", {"seed": 0}).write({"known": [[1, 2], 0.5]})
    assert Cache(tmp_path / "new", MODEL).entry("msp", {"seed": 0}).read() == {"known": [[1, 2], 0.5]}
    assert Cache(tmp_path / "new", MODEL).entry("msp", {"seed": 1}).read() is None
    assert Cache(tmp_path / "nowhere", MODEL).entry("msp", {"seed": 0}).read() is None
    assert not (tmp_path / "nowhere").exists()


def test_an_entry_per_purpose_identity_and_settings(tmp_path: Path) -> None:
    entries = [
        Cache(tmp_path, identity).entry(purpose, settings)
        for identity in (MODEL, MODEL | {"weights": "abd"}, MODEL | {"calibration": {"windows": 3}})
        for purpose in ("msp", "fisher")
        for settings in ({"seed": 0}, {"seed": 1}, {"seed": 0, "levels": [1]})
    ]
    for number, entry in enumerate(entries):
        entry.write(number)
    assert [entry.read() for entry in entries] == list(range(18))
    assert len({path.name for path in tmp_path.iterdir()}) == 18


def test_the_order_and_the_kind_of_sequence_of_settings_do_not_matter(tmp_path: Path) -> None:
    cache = Cache(tmp_path, MODEL)
    cache.entry("msp", {"seed": 0, "levels": (1, 2)}).write(1)
    assert cache.entry("msp", {"levels": [1, 2], "seed": 0}).read() == 1


def test_a_file_says_what_it_belongs_to_and_carries_its_checksum(tmp_path: Path) -> None:
    Cache(tmp_path, MODEL).entry("msp", {"seed": 0}).write({"generations": []})
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("msp_") and path.suffix == ".json"
    depends_on = {"purpose": "msp", "identity": MODEL, "settings": {"seed": 0}}
    canonical = json.dumps([depends_on, {"generations": []}], sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    assert json.loads(path.read_text()) == {"belongs": depends_on, "value": {"generations": []}, "sha256": digest}


def test_without_a_folder_values_are_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cache = Cache(None, MODEL)
    assert cache.entry("msp", {}).read() is None
    cache.entry("msp", {}).write([1])
    assert cache.entry("msp", {}).read() == [1] and cache.entry("isc", {}).read() is None
    assert Cache(None, MODEL).entry("msp", {}).read() is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("broken", ["replace", "fsync"])
def test_a_full_disk_leaves_the_last_value_on_it_and_the_new_one_in_memory(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cache = Cache(tmp_path, MODEL)
    cache.entry("msp", {}).write([1])

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, broken, full)
        cache.entry("msp", {}).write([1, 2])
    assert f"cache={tmp_path} cannot be written (No space left on device)" in capfd.readouterr().err
    assert cache.entry("msp", {}).read() == [1, 2]
    assert Cache(tmp_path, MODEL).entry("msp", {}).read() == [1]
    assert len(list(tmp_path.iterdir())) == 1  # nothing half written is left
    cache.entry("msp", {}).write([3])
    assert Cache(tmp_path, MODEL).entry("msp", {}).read() == cache.entry("msp", {}).read() == [3]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    entry = Cache(tmp_path / "file" / "cache", MODEL).entry("msp", {})
    with entry.held():
        entry.write(1)
    assert entry.read() == 1


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b'{"belongs": ', b"\xff\xfe{}", b"[" * 100_000),
        *(b"[]", b"3", b"null", b"{}", b'{"belongs": {"purpose": "msp"}, "value": 1}'),
    ],
)
def test_what_is_no_value_is_computed_again(content: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    entry = Cache(tmp_path, MODEL).entry("msp", {})
    path = tmp_path / f"{entry.key}.json"
    path.write_bytes(content)
    assert entry.read() is None
    said = capfd.readouterr().err
    assert str(path) in said and said.rstrip().endswith("it is computed again")
    entry.write([1])
    assert entry.read() == [1]


def test_every_flipped_byte_and_every_shorter_file_is_noticed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    entry = Cache(tmp_path, {}).entry("msp", {"seed": 0})
    entry.write({"known": [1.5, -2e-7]})
    path = tmp_path / f"{entry.key}.json"
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert entry.read() in (None, {"known": [1.5, -2e-7]}), position  # a blank may become another one
        path.write_bytes(whole[:position])
        assert entry.read() is None or position == len(whole) - 1  # the line's end
    assert capfd.readouterr().err


def test_a_file_under_the_name_of_another_is_not_taken_for_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    own = Cache(tmp_path, MODEL).entry("msp", {"seed": 0})
    other = Cache(tmp_path, MODEL | {"weights": "abd"}).entry("msp", {"seed": 0})
    other.write([1])
    shutil.copy(tmp_path / f"{other.key}.json", tmp_path / f"{own.key}.json")
    assert own.read() is None
    assert f"{own.key}.json belongs to another model" in capfd.readouterr().err
    assert other.read() == [1]


@pytest.mark.parametrize("purpose", ["../../x", "a;rm -rf ~", "two\nlines", "x" * 400, "é/ü"])
def test_no_purpose_leads_out_of_the_folder(purpose: str, tmp_path: Path) -> None:
    entry = Cache(tmp_path / "cache", MODEL).entry(purpose, {})
    with entry.held():
        entry.write([1])
    assert entry.read() == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert all(re.fullmatch(r"[\w.-]{1,100}", path.name) for path in (tmp_path / "cache").iterdir())


def written(folder: Path, count: int) -> list[Path]:
    """Values of a kilobyte each, the first one used longest ago."""
    paths = []
    for number in range(count):
        entry = Cache(folder, MODEL).entry("msp", {"seed": number})
        entry.write("x" * 1000)
        paths.append(folder / f"{entry.key}.json")
        os.utime(paths[-1], (number, number))
    return paths


def test_what_was_used_least_recently_goes_first(tmp_path: Path) -> None:
    paths = written(tmp_path, 4)
    cache = Cache(tmp_path, MODEL, gib=4000 / 2**30)
    assert cache.entry("msp", {"seed": 0}).read()  # which makes it the one used last
    cache.entry("msp", {"seed": 9}).write("x" * 1000)
    assert [path.exists() for path in paths] == [True, False, False, True]
    assert sum(path.stat().st_size for path in tmp_path.glob("*.json")) <= 4000


def test_what_somebody_uses_does_not_go(tmp_path: Path) -> None:
    paths = written(tmp_path, 3)
    (tmp_path / "notes.txt").write_text("mine" * 1000)
    with Cache(tmp_path, MODEL).entry("msp", {"seed": 0}).held():
        assert make_room(tmp_path, 2000 / 2**30, 0)
        assert [path.exists() for path in paths] == [True, False, False]
        assert not make_room(tmp_path, 0.0, 1)
    assert paths[0].exists() and (tmp_path / "notes.txt").exists()
    assert make_room(tmp_path, 1.0, 1) and make_room(tmp_path, None, 2**60)


def test_only_what_the_cache_wrote_is_ever_removed(tmp_path: Path) -> None:
    """A record's file is named as a value's is, and anybody may name a folder as a database's."""
    (tmp_path / "tiny_wanda_0.5_0123456789abcdef.json").write_text('{"version": 1}' + " " * 1000)
    (tmp_path / "msp_0123456789abcdef.json").write_text("[]")
    for name in ("levels_12345678", "blocks_0123456789abcdef"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("mine" * 1000)
    (paths,) = written(tmp_path, 1)
    before = sorted(path for path in tmp_path.rglob("*") if path != paths)
    assert make_room(tmp_path, 0.0, 0)
    LevelDatabase(torch.device("cpu"), tmp_path).close()
    assert sorted(tmp_path.rglob("*")) == before


def test_nothing_is_removed_where_that_would_not_help(tmp_path: Path) -> None:
    paths = written(tmp_path, 3)
    os.mkfifo(tmp_path / "msp_0123456789abcdef.json")  # which nobody may wait for
    assert not make_room(tmp_path, 2000 / 2**30, 3000)
    assert all(path.exists() for path in paths)


def test_a_value_that_does_not_fit_is_kept_in_memory(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cache = Cache(tmp_path, MODEL, gib=0.0)
    cache.entry("msp", {}).write([1])
    assert cache.entry("msp", {}).read() == [1] and not list(tmp_path.iterdir())
    assert "cache_gib=0 allows no more" in capfd.readouterr().err


def test_the_folder_may_go_at_any_time(tmp_path: Path) -> None:
    entry = Cache(tmp_path / "cache", MODEL).entry("msp", {})
    with entry.held():
        entry.write([1])
        shutil.rmtree(tmp_path / "cache")
        assert entry.read() is None
        entry.write([2])
    shutil.rmtree(tmp_path / "cache")
    with entry.held():
        assert entry.read() is None


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was really computed."""
    done: list[str] = []

    def counting(name: str, compute: Any) -> Any:
        def counted(*arguments: Any) -> Any:
            done.append(name)
            return compute(*arguments)

        return counted

    for name in ("fisher_trace", "hessian_trace"):
        monkeypatch.setattr(probing, name, counting(name, getattr(probing, name)))
    return done


def view(folder: Path | None, weights: str = "abc", seed: int = 0) -> LiveModelView:
    model = tiny("llama")
    cache = Cache(folder, {"weights": weights})
    return LiveModelView(decoder_of(model), [windows(2), windows(2, seed=1)], range(2), cache=cache, seed=seed)


def test_a_trace_is_computed_once_and_read_by_a_second_probe(tmp_path: Path, computed: list[str]) -> None:
    first = view(tmp_path)
    found = first.fisher_trace(3)
    assert first.fisher_trace(3) == found == view(tmp_path).fisher_trace(3)
    assert computed == ["fisher_trace"] and set(found) == set(first.shapes)
    view(tmp_path).fisher_trace(2)
    view(tmp_path, weights="abd").fisher_trace(3)
    assert computed == ["fisher_trace"] * 3 and len(list(tmp_path.glob("fisher_*.json"))) == 3


def test_a_trace_by_hutchinson_is_cached_with_its_draws_and_its_error(tmp_path: Path, computed: list[str]) -> None:
    found = view(tmp_path).hessian_trace(2, 2, "gaussian")
    again = view(tmp_path).hessian_trace(2, 2, "gaussian")
    assert {site: repr(trace) for site, trace in again.items()} == {site: repr(trace) for site, trace in found.items()}
    assert computed == ["hessian_trace"]
    view(tmp_path).hessian_trace(2, 2, "rademacher")
    view(tmp_path, seed=1).hessian_trace(2, 2, "gaussian")
    assert computed == ["hessian_trace"] * 3


def test_without_a_cache_a_probe_remembers_for_itself(computed: list[str]) -> None:
    one = view(None)
    assert one.fisher_trace(1) == one.fisher_trace(1) and computed == ["fisher_trace"]


def test_a_trace_takes_as_many_windows_as_there_are(tmp_path: Path) -> None:
    """And five of four are the four: nothing is computed twice."""
    assert view(tmp_path).fisher_trace(5) == view(tmp_path).fisher_trace(4)
    assert len(list(tmp_path.glob("fisher_*.json"))) == 1
