"""A saved model: its configuration and modes are ordinary, and a second save leaves nothing of the first."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from harness.runtime.files import staged

TEMPLATES = [{"name": "default", "template": "{{ a }}"}, {"name": "tool_use", "template": "{{ b }}"}]


@pytest.fixture(params=[0o022, 0o077, 0o002])
def mask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def with_model(options: list[str], folder: Path) -> list[str]:
    return [
        *(text for text in options if not text.startswith("model.path")),
        f"model.path={folder}",
        "method=magnitude",
    ]


def test_files_have_the_mode_that_files_have(mask: int, typed: Callable, options: list[str], tmp_path: Path) -> None:
    done = typed(*options, "method=magnitude", f"save={tmp_path / 'kept'}")
    assert done.status == 0, done.err
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "kept").iterdir() if path.is_file()}
    assert set(modes.values()) == {0o666 & ~mask} and "model.safetensors" in modes


@pytest.mark.parametrize("cache", [True, False])
def test_a_cache_is_left_as_the_checkpoint_had_it(
    cache: bool, typed: Callable, options: list[str], tiny: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(tiny, tmp_path / "source"))
    config = json.loads((source / "config.json").read_text(encoding="utf-8")) | {"use_cache": cache}
    (source / "config.json").write_text(json.dumps(config), encoding="utf-8")
    done = typed(*with_model(options, source), f"save={tmp_path / 'kept'}")
    assert done.status == 0, done.err
    assert json.loads((tmp_path / "kept" / "config.json").read_text(encoding="utf-8"))["use_cache"] is cache


def test_a_second_save_replaces_folders_and_leaves_nothing_of_the_first(
    typed: Callable, options: list[str], tiny: Path, tmp_path: Path
) -> None:
    """A tokenizer with several chat templates, twice; then one without; a user's own file stays."""
    source, kept = Path(shutil.copytree(tiny, tmp_path / "source")), tmp_path / "kept"
    path = source / "tokenizer_config.json"
    plain = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(plain | {"chat_template": TEMPLATES}), encoding="utf-8")
    for sparsity in ("0.5", "0.6"):
        done = typed(*with_model(options, source), f"save={kept}", f"sparsity={sparsity}")
        assert done.status == 0, done.err
        assert (kept / "additional_chat_templates" / "tool_use.jinja").is_file()
        assert (
            json.loads((kept / "pruning.json").read_text(encoding="utf-8"))["fingerprint"] == done.record["fingerprint"]
        )
    (kept / "mine.txt").write_text("notes", encoding="utf-8")
    path.write_text(json.dumps(plain), encoding="utf-8")
    done = typed(*with_model(options, source), f"save={kept}", "sparsity=0.7")
    assert done.status == 0, done.err
    assert not (kept / "additional_chat_templates").exists() and not (kept / "chat_template.jinja").exists()
    assert (kept / "mine.txt").is_file()


def test_a_mark_names_nothing_outside_its_folder(typed: Callable, options: list[str], tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (tmp_path / "mine.txt").write_text("notes", encoding="utf-8")
    names = ["..", "../mine.txt", str(tmp_path / "mine.txt"), ".", "", None]
    (kept / "pruning.json").write_text(json.dumps({"fingerprint": "x", "files": names}), encoding="utf-8")
    assert typed(*options, "method=magnitude", f"save={kept}").status == 0
    assert (tmp_path / "mine.txt").is_file() and (kept / "model.safetensors").is_file()


@pytest.mark.parametrize("before", ["folder", "file", "nothing"])
@pytest.mark.parametrize("comes", ["folder", "file"])
def test_what_is_staged_takes_the_place_of_what_was_there(before: str, comes: str, tmp_path: Path) -> None:
    def make(path: Path, kind: str, text: str) -> None:
        if kind == "folder":
            path.mkdir()
            (path / text).write_text(text, encoding="utf-8")
        elif kind == "file":
            path.write_text(text, encoding="utf-8")

    make(tmp_path / "it", before, "old")
    with staged(tmp_path) as stage:
        make(stage / "it", comes, "new")
    if comes == "folder":
        assert [path.name for path in (tmp_path / "it").iterdir()] == ["new"]
    else:
        assert (tmp_path / "it").read_text(encoding="utf-8") == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


def test_the_folder_says_what_was_done(typed: Callable, options: list[str], tmp_path: Path) -> None:
    """By matrix in `pruning.json`, in short in a model card; a user's own README stays."""
    kept = tmp_path / "kept"
    record = typed(*options, "method=wanda", "sparsity=2of4", f"save={kept}").record
    mark, card = json.loads((kept / "pruning.json").read_text(encoding="utf-8")), (kept / "README.md")
    assert mark["fingerprint"] == record["fingerprint"] and mark["sites"] == record["sites"]
    assert (mark["method"]["name"], mark["sparsity"], mark["seed"]) == ("wanda", "2of4", 0)
    assert mark["calibration"]["windows"] == 2 and mark["measures"] == record["measures"]
    assert mark["parameters"] == sum(one.numel() for one in load_file(kept / "model.safetensors").values())
    assert all(told in card.read_text(encoding="utf-8") for told in ("* method: wanda\n", "* 50.0 % zeros in "))
    mark["files"].remove("README.md")
    (kept / "pruning.json").write_text(json.dumps(mark), encoding="utf-8")
    card.write_text("mine", encoding="utf-8")
    assert typed(*options, "method=magnitude", f"save={kept}").status == 0
    assert card.read_text(encoding="utf-8") == "mine"
