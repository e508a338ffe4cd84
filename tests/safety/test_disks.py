"""A full disk, a folder that cannot be written, a tracker out of reach: a correct table, or one clear sentence."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.calibration.levels.database import LevelDatabase
from harness.core.pattern import Unstructured
from harness.record import schema
from harness.record.schema import Record
from harness.runtime.errors import Failure, UserError

EVOPRESS = ["allocator=evopress", "allocator.generations=2", "allocator.offspring=4", "allocator.stages=[1,2]"]
EVOPRESS += ["allocator.survivors=[2,1]", "allocator.held_out=0", "allocator.granularity=block"]
STUDY = ["study=harness_embedded", "model=embedded-llama", "method=none", "evaluation=[embedded-a]"]


class Disk:
    """A small file system of its own, which only the superuser can make."""

    def __init__(self, folder: Path, size: str = "8m") -> None:
        self.folder = folder
        folder.mkdir()
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
        if made.returncode:
            pytest.skip("a file system can only be mounted by the superuser")

    def fill(self) -> None:
        with (self.folder / "filler").open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))

    def free(self) -> None:
        (self.folder / "filler").unlink()

    def read_only(self) -> None:
        subprocess.run(["mount", "-o", "remount,ro", self.folder], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "-l", folder], capture_output=True)


def elsewhere(options: list[str], **folders: Path) -> list[str]:
    """The options of a run with these folders."""
    rest = [text for text in options if text.partition("=")[0] not in folders]
    return [*rest, *(f"{key}={folder}" for key, folder in folders.items())]


def test_a_record_that_finds_no_room_costs_no_pruned_block(
    disk: Disk, typed: Callable, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = [*elsewhere(options, records=disk.folder / "records", cache=tmp_path / "cache"), "checkpoint_every=0"]
    write = schema.write

    def late(record: Record, folder: Path) -> Path:
        disk.fill()  # another process did, while this one was pruning
        return write(record, folder)

    with monkeypatch.context() as patch:
        patch.setattr(schema, "write", late)
        lost = typed(*run)
    assert lost.status == 2 and lost.out == ""
    assert lost.err == f"error: the record cannot be written to {disk.folder / 'records'}: No space left on device.\n"
    assert not [path for path in (disk.folder / "records").iterdir() if path.is_file()]
    disk.free()
    again = typed(*run)
    assert again.status == 0
    assert again.record["notes"] == ["resumed: 2 of 2 blocks are those that an earlier attempt finished"]
    assert again.record["measures"] == typed(*options).record["measures"]


def test_an_earlier_record_survives_a_full_disk(disk: Disk, typed: Callable, options: list[str]) -> None:
    run = elsewhere(options, records=disk.folder / "records")
    first = typed(*run)
    disk.fill()
    assert typed(*run, "force=true").status == 2
    assert typed(*run).record == first.record


@pytest.mark.parametrize("wrong", ["full", "read-only"])
def test_a_cache_that_takes_nothing_costs_no_run(wrong: str, disk: Disk, typed: Callable, options: list[str]) -> None:
    run = [*elsewhere(options, cache=disk.folder / "cache"), "checkpoint_every=0"]
    (disk.folder / "cache").mkdir()
    disk.fill() if wrong == "full" else disk.read_only()
    for more in ([], EVOPRESS):
        done = typed(*run, *more)
        if wrong == "read-only" and more:  # a search is asked for a place before it starts
            assert done.status == 2 and f"cache={disk.folder / 'cache'} cannot be written" in done.err
            continue
        assert done.status == 0, done.err
        assert any("blocks from 0 on are not kept" in note for note in done.record["notes"])
        assert any("evopress is not kept for other runs" in note for note in done.record["notes"]) == bool(more)
        other = [text for text in options if not text.startswith("records=")]
        expected = typed(*other, *more, f"records={disk.folder.parent / 'good'}").record
        assert done.record["measures"] == expected["measures"] and done.record["sites"] == expected["sites"]


def test_a_model_that_finds_no_room_is_said_and_its_numbers_stay(
    disk: Disk, typed: Callable, options: list[str], tmp_path: Path
) -> None:
    saved = disk.folder / "kept"
    first = typed(*options, f"save={saved}")
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    disk.fill()
    full = typed(*options, "sparsity=0.7", f"save={saved}")
    assert full.status == 1 and full.record["status"] == "failed"
    assert full.record["reason"].startswith(f"save={saved} cannot be written: ")
    assert "No space left on device" in full.record["reason"]
    assert full.record["measures"] == typed(*options, "sparsity=0.7", f"records={tmp_path / 'o'}").record["measures"]
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert "found" in typed(*options, f"save={saved}").err and first.status == 0
    disk.free()
    assert typed(*options, "sparsity=0.7", f"save={saved}").status == 0
    assert "found" not in typed(*options, f"save={saved}").err


def test_tables_that_find_no_room_leave_the_earlier_ones(disk: Disk, typed: Callable) -> None:
    run = [*STUDY, "evaluation_limit=2", f"records={disk.folder / 'records'}"]
    first = typed(*run)
    assert first.status == 0, first.err
    folder = disk.folder / "tables" / "harness_embedded" / "embedded"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    disk.fill()
    full = typed("tables", *run)
    assert full.status == 2
    assert full.err == f"error: the tables cannot be written to {folder}: No space left on device.\n"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("option", ["records", "save"])
def test_a_folder_that_cannot_be_written_is_said_before_the_work(
    option: str, disk: Disk, typed: Callable, options: list[str]
) -> None:
    disk.read_only()
    refused = typed(*elsewhere(options, **{option: disk.folder / "inside"}))
    assert refused.status == 2 and refused.out == ""
    assert refused.err == f"error: {option}={disk.folder / 'inside'} cannot be written: Read-only file system.\n"


def test_a_level_database_that_finds_no_room(disk: Disk, typed: Callable, options: list[str]) -> None:
    run = [*elsewhere(options, cache=disk.folder / "cache"), *EVOPRESS, "allocator.database=disk"]
    disk.fill()
    full = typed(*run)
    assert full.status == 2 and full.err.splitlines()[-1].startswith("error: the level database cannot be written to")
    disk.free()
    assert typed(*run).status == 0
    assert not list((disk.folder / "cache").glob("levels_*"))


def test_a_level_database_keeps_to_the_cache_s_limit(typed: Callable, options: list[str], tmp_path: Path) -> None:
    run = [*options, *EVOPRESS, "allocator.database=disk", f"cache={tmp_path / 'cache'}"]
    refused = typed(*run, "cache_gib=0.0001")
    assert refused.status == 2
    assert refused.err.startswith("error: the level database needs ") and refused.err.count("\n") == 1
    assert "cache_gib=0.0001 allows less" in refused.err
    assert typed(*run, "cache_gib=1").status == 0


def level_database(folder: Path) -> tuple[LevelDatabase, torch.Tensor]:
    made = LevelDatabase(torch.device("cpu"), folder)
    level = torch.arange(64.0).reshape(8, 8)
    made.put("q", {Unstructured(0.5): level})
    return made, level


def test_a_damaged_level_is_no_level(tmp_path: Path) -> None:
    made, _ = level_database(tmp_path)
    (path,) = tmp_path.rglob("q.safetensors")
    with path.open("r+b") as file:
        file.seek(-9, os.SEEK_END)
        file.write(b"\x77")
    with pytest.raises(Failure, match=r"the level database .* is damaged: q at .* it goes on from its last generation"):
        made.get("q", Unstructured(0.5))


def test_levels_may_be_deleted_while_a_search_reads_them(tmp_path: Path) -> None:
    made, level = level_database(tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")
    assert torch.equal(made.get("q", Unstructured(0.5)), level)
    made.put("k", {Unstructured(0.5): level})
    assert torch.equal(made.get("k", Unstructured(0.5)), level)
    made.close()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_the_next_search_removes_what_a_killed_one_left_and_nothing_else(tmp_path: Path) -> None:
    killed = "from tests.safety.test_disks import *; _ = level_database(Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")])}
    subprocess.run([sys.executable, "-c", killed, tmp_path], cwd=root, env=environment, check=False)
    (left,) = tmp_path.glob("levels_*")
    made, level = level_database(tmp_path)
    other, _ = level_database(tmp_path)
    assert not left.exists() and len(list(tmp_path.glob("levels_*"))) == 2
    assert torch.equal(made.get("q", Unstructured(0.5)), level)
    made.close()
    other.close()


@pytest.mark.parametrize("place", ["init", "update", "finish", "login"])
@pytest.mark.parametrize("tracker", ["wandb", "wandb-offline"])
def test_a_tracker_out_of_reach_changes_no_status(
    place: str, tracker: str, typed: Callable, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Session:
        def __init__(self, **_: Any) -> None:
            self.summary = self
            gone("init")

        def __enter__(self) -> Session:
            return self

        def __exit__(self, *_: object) -> None:
            gone("finish")

        def update(self, values: dict[str, Any]) -> None:
            gone("update")

    def gone(where: str, **_: Any) -> bool:
        if where == place:
            raise ConnectionError("the host is unreachable")
        return True

    fake = types.SimpleNamespace(init=Session, Settings=dict, login=lambda prompt: gone("login"))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    done = typed(*options, f"tracker={tracker}")
    assert done.status == 0 and done.record["status"] == "ok"
    said = f"tracker {tracker}: ConnectionError: the host is unreachable; the record is safe"
    assert done.err.count(said) == (place != "login")
    swept = typed("-m", *options, f"tracker={tracker}", "sparsity=0.5,3of5")
    assert swept.status == 0 and [
        json.loads(Path(line.split(": ")[1]).read_text())["status"]
        for line in swept.out.splitlines()
        if line.startswith("record: ")
    ] == ["ok", "skipped"]


def test_no_room_is_a_users_to_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where nothing can be mounted: the error of a write is a sentence and leaves no file."""
    from harness.record import schema
    from tests.safety.test_names import record

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=rf"the record cannot be written to {tmp_path}: No space left on device"):
        schema.write(record("tiny"), tmp_path)
    assert not list(tmp_path.iterdir())
