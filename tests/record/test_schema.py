"""Records: written whole or not at all, found by fingerprint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.record import schema
from harness.record.identity import fingerprint
from harness.record.request import matcher_of_record, request_key
from harness.record.schema import Record
from harness.runtime.errors import UserError
from tests.record.test_trackers import CONFIG

MEASURE = {"task": "t", "metric": "acc", "value": 0.5, "stderr": None, "protocol": "p#1", "samples": 2}


def make(**changes: object) -> Record:
    return Record(**({"status": "ok", "reason": "", "fingerprint": "0" * 16, "config": CONFIG} | changes))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = schema.write(make(notes=("damping 0.1",)), tmp_path / "new" / "folder")
    assert path.name == "tiny_wanda_uniform_2of4_all_s0_0000000000000000.json"
    assert schema.read(path) == make(notes=("damping 0.1",))
    assert schema.find(path.parent, "0" * 16) == (path, schema.read(path))
    assert schema.find(path.parent, "1" * 16) is None


def test_an_infinite_value_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        schema.write(make(sparsity={"asked": float("nan")}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_crash_while_writing_leaves_no_half_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(_: int) -> None:
        raise KeyboardInterrupt

    schema.write(make(), tmp_path)
    monkeypatch.setattr("os.fsync", crash)
    with pytest.raises(KeyboardInterrupt):
        schema.write(make(status="failed"), tmp_path)
    (left,) = tmp_path.iterdir()
    assert json.loads(left.read_text())["status"] == "ok"


def test_files_that_are_no_records_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "half.json").write_text('{"schema": 1, ')
    (tmp_path / f"other_{'2' * 16}.json").write_text("[]")
    path = schema.write(make(), tmp_path)
    assert [found for found, _ in schema.read_all(tmp_path)] == [path]
    assert schema.find(tmp_path, "2" * 16) is None
    with pytest.raises(UserError, match="not a record"):
        schema.read(tmp_path / "half.json")
    newer = json.loads(path.read_text()) | {"schema": 2}
    (tmp_path / "newer.json").write_text(json.dumps(newer))
    with pytest.raises(UserError, match="schema 2"):
        schema.read(tmp_path / "newer.json")


@pytest.mark.parametrize(
    "changes",
    [
        *({"measures": [MEASURE | {name: value}]} for name in ("task", "metric", "protocol") for value in (["x"], 3)),
        *(
            {"measures": [MEASURE | {name: value}]}
            for name in ("value", "stderr", "samples")
            for value in ("abc", [1], 10**400, float("nan"))
        ),
        {"measures": [{"task": "t"}]},
        {"measures": [MEASURE | {"protocol": "\ud800"}]},
        {"reason": {"a": 1}},
        {"reason": "\ud800"},
        {"attempt": "x"},
        {"attempt": None},
        {"stages": {"prune": 1}},
        {"stages": {"prune": {"seconds": "x"}}},
        {"stages": {"prune": {"seconds": 1.0}}},  # on no hardware
        {"stages": {"prune": {"seconds": 1.0}}, "provenance": {"hardware": 3}},
    ],
    ids=lambda changes: str(changes)[:80],
)
def test_a_record_with_a_value_of_a_wrong_type_is_none(changes: dict[str, Any], tmp_path: Path) -> None:
    path = schema.write(make(measures=(MEASURE,)), tmp_path)
    assert schema.find(tmp_path, "0" * 16)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=f"{path.name} is not a record "):
        schema.read(path)
    assert not list(schema.read_all(tmp_path)) and schema.find(tmp_path, "0" * 16) is None
    assert path.is_file()


def test_a_record_of_another_fingerprint_is_not_found(tmp_path: Path) -> None:
    path = schema.write(make(), tmp_path)
    copied = tmp_path / path.name.replace("0" * 16, "1" * 16)
    copied.write_bytes(path.read_bytes())
    assert schema.find(tmp_path, "1" * 16) is None
    assert schema.find(tmp_path, "0" * 16) == (path, make())


def test_names_cannot_leave_the_folder(tmp_path: Path) -> None:
    sly = CONFIG | {"model": {"name": "../../etc/passwd"}, "scope": "a/b"}
    assert schema.write(make(config=sly), tmp_path).parent == tmp_path


def test_fingerprints_do_not_depend_on_order() -> None:
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1}) != fingerprint({"a": 1, "b": [3]})


WHOLE = {
    "model": {"name": "m", "path": "p", "window": 8},
    "method": {"name": "wanda"},
    "allocator": {"name": "uniform"},
    "calibration": {"corpus": "c", "length": 8, "seed": 0},
    "evaluation": {"t": {"name": "perplexity"}},
    "planner": {"name": "none"},
    "recovery": {"name": "none"},
    "sparsity": "0.5", "seed": 0, "device": "cpu", "dtype": "float32", "evaluation_window": 8,
}  # fmt: skip


@pytest.mark.parametrize("name", ["model", "allocator", "calibration", "evaluation", "method", "planner", "recovery"])
@pytest.mark.parametrize("value", [None, 3, "x", ["ab"], [[1, 2]], {}])
def test_a_record_of_an_odd_configuration_answers_nothing(name: str, value: Any) -> None:
    """What cannot be asked for cannot be answered, whoever wrote the file."""
    assert request_key(WHOLE) in matcher_of_record(make(config=WHOLE))
    assert request_key(WHOLE) not in matcher_of_record(make(config=WHOLE | {name: value}))
