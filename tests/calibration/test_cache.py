"""Cached values: one file per identity and settings, whole or not at all; and traces that are computed once."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny, windows

from harness.calibration import probe as probing
from harness.calibration.cache import Cache
from harness.calibration.probe import ModelProbe
from harness.core.errors import UserError
from harness.models.anatomy import anatomy_of

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


def test_a_file_says_what_it_belongs_to(tmp_path: Path) -> None:
    Cache(tmp_path, MODEL).entry("msp", {"seed": 0}).write({"generations": []})
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("msp_") and path.suffix == ".json"
    belongs = {"purpose": "msp", "identity": MODEL, "settings": {"seed": 0}}
    assert json.loads(path.read_text()) == {"belongs": belongs, "value": {"generations": []}}


def test_without_a_folder_values_are_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cache = Cache(None, MODEL)
    assert cache.entry("msp", {}).read() is None
    cache.entry("msp", {}).write([1])
    assert cache.entry("msp", {}).read() == [1] and cache.entry("isc", {}).read() is None
    assert Cache(None, MODEL).entry("msp", {}).read() is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("broken", ["replace", "fsync"])
def test_a_write_that_does_not_end_leaves_the_last_value(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = Cache(tmp_path, MODEL).entry("msp", {})
    entry.write([1])

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, broken, full)
        with pytest.raises(UserError, match=rf"cache={tmp_path} cannot be written: No space left on device"):
            entry.write([1, 2])
    assert entry.read() == [1] and len(list(tmp_path.iterdir())) == 1  # nothing half written is left
    entry.write([3])
    assert entry.read() == [3]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Cache(tmp_path / "file" / "cache", MODEL).entry("msp", {}).write(1)


@pytest.mark.parametrize("content", ["", "{", '{"belongs": ', b"\xff\xfe{}"])
def test_a_file_that_cannot_be_read_is_named_and_stays(content: str | bytes, tmp_path: Path) -> None:
    entry = Cache(tmp_path, MODEL).entry("msp", {})
    path = tmp_path / f"{entry.key}.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = path.read_bytes()
    with pytest.raises(UserError, match=rf"{path} cannot be read.*remove it") as caught:
        entry.read()
    assert "\n" not in str(caught.value) and path.read_bytes() == before


@pytest.mark.parametrize("content", ["[]", "3", "null", "{}", '{"belongs": {"purpose": "msp"}, "value": 1}'])
def test_a_file_of_something_else_is_named_and_stays(content: str, tmp_path: Path) -> None:
    entry = Cache(tmp_path, MODEL).entry("msp", {})
    path = tmp_path / f"{entry.key}.json"
    path.write_text(content)
    with pytest.raises(UserError, match=rf"{path} belongs to another model or other settings; remove it"):
        entry.read()
    assert path.read_text() == content


def test_a_file_under_the_name_of_another_is_refused(tmp_path: Path) -> None:
    own = Cache(tmp_path, MODEL).entry("msp", {"seed": 0})
    other = Cache(tmp_path, MODEL | {"weights": "abd"}).entry("msp", {"seed": 0})
    other.write([1])
    shutil.copy(tmp_path / f"{other.key}.json", tmp_path / f"{own.key}.json")
    with pytest.raises(UserError, match=f"{own.key}.json belongs to another model"):
        own.read()
    assert other.read() == [1] and (tmp_path / f"{own.key}.json").is_file()


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


def probe(folder: Path | None, weights: str = "abc", seed: int = 0) -> ModelProbe:
    model = tiny("llama")
    cache = Cache(folder, {"weights": weights})
    return ModelProbe(model, anatomy_of(model), [windows(2), windows(2, seed=1)], range(2), cache=cache, seed=seed)


def test_a_trace_is_computed_once_and_read_by_a_second_probe(tmp_path: Path, computed: list[str]) -> None:
    first = probe(tmp_path)
    found = first.fisher_trace(3)
    assert first.fisher_trace(3) == found == probe(tmp_path).fisher_trace(3)
    assert computed == ["fisher_trace"] and set(found) == set(first.shapes)
    probe(tmp_path).fisher_trace(2)
    probe(tmp_path, weights="abd").fisher_trace(3)
    assert computed == ["fisher_trace"] * 3 and len(list(tmp_path.glob("fisher_*.json"))) == 3


def test_a_trace_by_hutchinson_is_cached_with_its_draws_and_its_error(tmp_path: Path, computed: list[str]) -> None:
    found = probe(tmp_path).hessian_trace(2, 2, "gaussian")
    again = probe(tmp_path).hessian_trace(2, 2, "gaussian")
    assert {site: repr(trace) for site, trace in again.items()} == {site: repr(trace) for site, trace in found.items()}
    assert computed == ["hessian_trace"]
    probe(tmp_path).hessian_trace(2, 2, "rademacher")
    probe(tmp_path, seed=1).hessian_trace(2, 2, "gaussian")
    assert computed == ["hessian_trace"] * 3


def test_without_a_cache_a_probe_remembers_for_itself(computed: list[str]) -> None:
    one = probe(None)
    assert one.fisher_trace(1) == one.fisher_trace(1) and computed == ["fisher_trace"]


def test_a_trace_takes_as_many_windows_as_there_are(tmp_path: Path) -> None:
    """And five of four are the four: nothing is computed twice."""
    assert probe(tmp_path).fisher_trace(5) == probe(tmp_path).fisher_trace(4)
    assert len(list(tmp_path.glob("fisher_*.json"))) == 1
