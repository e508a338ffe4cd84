"""Things that happen to folders while runs use them, and files that somebody else left there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from harness.calibration.cache.resume import CheckpointPolicy, FinishedBlocks
from harness.core.search import SearchState
from harness.record import schema
from harness.runtime import files
from harness.runtime.errors import UserError
from harness.runtime.files import atomically, remove_abandoned, staged, write_atomically
from tests.commands import save_tiny
from tests.safety.test_disks import EVOPRESS
from tests.safety.test_names import record

STUDY = ["study=harness_embedded", "model=embedded-llama", "method=none", "evaluation=[embedded-a]"]
STUDY += ["evaluation_limit=2"]


def test_weights_that_change_after_they_were_hashed_are_no_result(
    typed: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second point of a sweep, prepared before the first one ran, would carry the hash of other weights."""
    import harness.session as running

    folder = save_tiny(tmp_path / "model")
    load = running.load_model

    def replaced(*arguments: Any, **named: Any) -> Any:
        save_tiny(folder, rms_norm_eps=0.1, initializer_range=0.5)
        return load(*arguments, **named)

    run = ["model=hf", f"model.path={folder}", "model.window=32", "calibration.windows=2", "evaluation=[embedded-a]"]
    run += ["evaluation_limit=2", f"records={tmp_path / 'records'}"]
    with monkeypatch.context() as patch:
        patch.setattr(running, "load_model", replaced)
        refused = typed(*run)
    assert refused.status == 2 and refused.err.endswith("changed since they were hashed; run again.\n")
    assert not list((tmp_path / "records").glob("*.json"))
    assert typed(*run).status == 0


def left_there(folder: Path) -> None:
    """What is no record: a pipe, a folder, links into nowhere and in circles, text that never ends its brackets."""
    folder.mkdir(parents=True, exist_ok=True)
    os.mkfifo(folder / "pipe.json")
    (folder / "folder.json").mkdir()
    (folder / "nowhere.json").symlink_to(folder / "gone")
    (folder / "circle.json").symlink_to(folder / "circle.json")
    (folder / "deep.json").write_text("[" * 200_000)
    (folder / "binary.json").write_bytes(bytes(range(256)))
    (folder / "empty.json").write_bytes(b"")
    old = json.loads(schema.write(record("tiny"), folder).read_text())
    (folder / "other_version.json").write_text(json.dumps(old | {"config": old["config"] | {"evaluation": 3}}))


def test_what_is_no_record_breaks_no_study(typed: Callable, tmp_path: Path) -> None:
    left_there(tmp_path / "records")
    before = sorted(path.name for path in (tmp_path / "records").iterdir())
    run = [*STUDY, f"records={tmp_path / 'records'}"]
    assert typed(*run).status == 0
    for command in ("plan", "status", "tables", "compare"):
        assert typed(command, *run).status == 0, command
    assert set(before) <= {path.name for path in (tmp_path / "records").iterdir()}


def test_a_damaged_record_and_claims_break_no_report_and_the_point_is_run_again(
    typed: Callable, tmp_path: Path
) -> None:
    run = [*STUDY, f"records={tmp_path / 'records'}"]
    assert typed(*run).status == 0
    (path,) = (tmp_path / "records").glob("*.json")
    good = json.loads(path.read_text())
    path.write_text(json.dumps(good | {"status": "failed", "attempt": "x", "measures": [{"task": ["x"]}]}))
    claims = tmp_path / "records" / ".running"
    (claims / f"{0:016x}.json").mkdir(parents=True)
    (claims / f"{1:016x}.json").write_text("[" * 200_000)
    for command in ("plan", "status", "tables", "compare"):
        done = typed(command, *run)
        assert "error" not in done.err and "Traceback" not in done.err, command
    assert typed("retry", *run).status == 0
    assert json.loads(path.read_text())["measures"] == good["measures"]
    assert len(list(claims.iterdir())) >= 2


@pytest.mark.parametrize("entry", ['"parameters": 0, "asked": 0.5', '"parameters": 1e999, "asked": 0.5'])
def test_an_allocation_that_cannot_be_weighed_is_one_sentence(typed: Callable, entry: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(f'{{"sites": {{"a": {{{entry}}}}}}}')
    refused = typed("allocation", str(tmp_path / "a.json"), str(tmp_path / "out"))
    assert refused.status == 2 and "a.json is no allocation: " in refused.err and refused.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_copied_record_answers_for_no_other_configuration(
    typed: Callable, options: list[str], tmp_path: Path
) -> None:
    one, other = (typed(*options, f"sparsity={sparsity}") for sparsity in (0.5, 0.6))
    kept, replaced = (Path(done.out.strip().removeprefix("record: ")) for done in (one, other))
    replaced.write_bytes(kept.read_bytes())
    again = typed(*options, "sparsity=0.6")
    assert again.status == 0 and "found" not in again.err
    assert again.record["sparsity"] == other.record["sparsity"] != json.loads(kept.read_text())["sparsity"]


def test_a_folder_in_the_place_of_a_record_is_said(typed: Callable, options: list[str], tmp_path: Path) -> None:
    first = typed(*options)
    path = Path(first.out.strip().removeprefix("record: "))
    path.unlink()
    path.mkdir()
    refused = typed(*options)
    assert refused.status == 2 and refused.err.splitlines()[-1].startswith("error: the record cannot be written to")
    assert [left for left in path.parent.iterdir() if left.name.endswith(".tmp")] == []


def test_a_path_with_every_odd_character(typed: Callable, options: list[str], tmp_path: Path) -> None:
    odd = tmp_path / "a [b]* ?é$x;#"
    rest = [text for text in options if not text.startswith("records=")]
    quoted = f"'{odd}'"
    done = typed(*rest, f"records={quoted}", *EVOPRESS, "checkpoint_every=0")
    assert done.status == 0, done.err
    assert "found" in typed(*rest, f"records={quoted}", *EVOPRESS).err


def test_folders_that_go_while_a_search_runs_cost_nothing(
    typed: Callable, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = typed(*options, *EVOPRESS, f"cache={tmp_path / 'quiet'}").record
    end = SearchState.end_generation

    def swept(state: SearchState, *arguments: Any) -> None:
        end(state, *arguments)
        shutil.rmtree(tmp_path / "cache")
        shutil.rmtree(tmp_path / "records", ignore_errors=True)

    monkeypatch.setattr(SearchState, "end_generation", swept)
    more = [f"cache={tmp_path / 'cache'}", "allocator.database=disk", "force=true", "checkpoint_every=0"]
    done = typed(*options, *EVOPRESS, *more)
    assert done.status == 0, done.err
    assert done.record["sites"] == whole["sites"] and done.record["measures"] == whole["measures"]


WRITING = """
import os, sys
from pathlib import Path
from harness.runtime.files import atomically, staged
folder = Path(sys.argv[1])
with atomically(folder / "whole.json") as file, staged(folder) as stage:
    file.write(b"half")
    file.flush()
    (stage / "table.md").write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_writer_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITING, tmp_path], env=environment,
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]  # fmt: skip
    for writer in writers:
        assert writer.stdout and writer.stdout.readline() == b"writing\n"
    assert len(list(tmp_path.glob(".*.tmp"))) == 4
    remove_abandoned(tmp_path)
    assert len(list(tmp_path.glob(".*.tmp"))) == 4
    writers[0].kill()
    writers[0].wait()
    remove_abandoned(tmp_path)
    assert len(list(tmp_path.glob(".*.tmp"))) == 2
    writers[1].communicate(b"")
    assert {path.name for path in tmp_path.iterdir()} == {"whole.json", "table.md"}


def test_what_another_machine_left_goes_once_it_is_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lock may not be seen here; a day by the file system's own clock, whatever ours says."""
    for name in (".other-abc.tmp", ".other-old.tmp", f"{files._PREFIX}abc.tmp"):
        (tmp_path / name).write_text("half")
    os.utime(tmp_path / ".other-old.tmp", (time.time() - 2 * files.DAY,) * 2)
    (tmp_path / "mine.tmp").write_text("not hidden, not ours")
    monkeypatch.setattr(time, "time", lambda: 4e9)
    remove_abandoned(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".other-abc.tmp", "mine.tmp"}


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(5, "Input/output error"), MemoryError])
def test_a_write_that_is_stopped_leaves_the_old_file_alone(
    stop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomically(tmp_path / "a.json", "old")

    def stopped(*_: Any) -> None:
        raise stop

    monkeypatch.setattr(os, "fsync", stopped)
    with pytest.raises(BaseException) as raised:  # noqa: PT011
        write_atomically(tmp_path / "a.json", "new")
    assert isinstance(raised.value, type(stop) if isinstance(stop, OSError) else stop)
    with pytest.raises(ZeroDivisionError), staged(tmp_path) as stage:
        (stage / "a.json").write_text(str(1 / 0))
    with pytest.raises(ZeroDivisionError), atomically(tmp_path / "a.json") as file:
        file.write(str(1 / 0).encode())
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "old"


@pytest.mark.parametrize(
    ("tensors", "about"),
    [
        ({"weight/q": torch.ones(1, 2)}, None),
        ({"weight/q": torch.ones(1, 2)}, {"belongs": "this"}),
        ({"weight/q": torch.ones(1, 2)}, {"belongs": "this", "facts": "{"}),
        ({"weight/q": torch.ones(1, 2)}, {"belongs": "this", "facts": '{"notes": 3, "told": {}}'}),
        ({"weight/q": torch.ones(1, 2)}, {"belongs": "this", "facts": '{"notes": {"k": ""}, "told": {}}'}),
        ({"weight/q": torch.ones(2, 2)}, {"belongs": "this", "facts": '{"notes": {"q": ""}, "told": {}}'}),
        ({"weight/q": torch.ones(1, 2).half()}, {"belongs": "this", "facts": '{"notes": {"q": ""}, "told": {}}'}),
        ({"kept/q": torch.ones(1, 2)}, {"belongs": "this", "facts": '{"notes": {"q": ""}, "told": {}}'}),
    ],
)
def test_a_block_with_a_fitting_checksum_is_not_believed_either(
    tensors: dict[str, torch.Tensor], about: dict[str, str] | None, tmp_path: Path
) -> None:
    content = safetensors.torch.save(tensors, about)
    (tmp_path / f"0_{hashlib.sha256(content).hexdigest()}.safetensors").write_bytes(content)
    blocks = FinishedBlocks(CheckpointPolicy(tmp_path, "this", 0), lambda index: {"q": torch.zeros(1, 2)})
    assert blocks.load(0) is None
    assert not list(tmp_path.glob("*.safetensors"))


def test_an_allocation_that_never_closes_its_brackets_is_a_mistake(
    typed: Callable, options: list[str], tmp_path: Path
) -> None:
    (tmp_path / "deep.json").write_text('{"sites": ' + "[" * 200_000)
    refused = typed(*options, "allocator=file", f"allocator.path={tmp_path / 'deep.json'}")
    assert refused.status == 2 and "is no allocation" in refused.err
    with pytest.raises(UserError):
        schema.read(tmp_path / "deep.json")
