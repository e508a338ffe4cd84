"""Published records in one file: the same records, the same bytes, the same table."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.record import schema
from harness.runtime.errors import UserError

RUN = ["method=magnitude", "evaluation=[embedded-a]", "evaluation_limit=2"]


def records(typed: Callable, folder: Path) -> list[schema.Record]:
    for seed in (0, 1):
        assert typed(*RUN, f"seed={seed}", f"records={folder}").status == 0
    return [schema.read(path) for path in sorted(folder.glob("*.json"))]


def test_what_is_packed_comes_back_whole_in_whatever_order(typed: Callable, tmp_path: Path) -> None:
    mine = records(typed, tmp_path / "records")
    schema.pack(mine, tmp_path / "a" / schema.PACKED)
    schema.pack(mine[::-1], tmp_path / "b" / schema.PACKED)
    one, other = ((tmp_path / name / schema.PACKED).read_bytes() for name in "ab")
    assert one == other
    back = {record.fingerprint: record for record in schema.unpack(tmp_path / "a" / schema.PACKED)}
    assert back == {record.fingerprint: record for record in mine} and len(back) == 2
    assert all(record.sites for record in back.values())
    read = list(schema.read_all(tmp_path / "a"))
    assert {path.name for path, _ in read} == {schema.PACKED} and len(read) == 2


def test_a_table_is_the_same_from_either_form(typed: Callable, tmp_path: Path) -> None:
    study = ["study=harness_embedded", "model=embedded-llama", "method=none,magnitude", "seed=0"]
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    assert typed(*study, "evaluation_limit=2", f"records={plain}").status == 0
    schema.pack([schema.read(path) for path in plain.glob("*.json")], packed / schema.PACKED)
    tables = [typed("tables", *study, "evaluation_limit=2", f"records={folder}").out for folder in (plain, packed)]
    assert tables[0].split("table and figure:")[0] == tables[1].split("table and figure:")[0]
    assert "magnitude" in tables[0]


@pytest.mark.parametrize("content", [b"", b"no gzip", b"\x1f\x8b\x08\x00damaged"])
def test_a_damaged_file_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / schema.PACKED).write_bytes(content)
    with pytest.raises(UserError, match="holds no packed records"):
        list(schema.unpack(tmp_path / schema.PACKED))
    assert list(schema.read_all(tmp_path)) == []


def test_a_line_that_is_no_record_is_one_sentence(typed: Callable, tmp_path: Path) -> None:
    (record, *_) = records(typed, tmp_path / "records")
    schema.pack([replace(record, measures=({"task": 1},))], tmp_path / schema.PACKED)
    with pytest.raises(UserError, match="is not a record"):
        list(schema.unpack(tmp_path / schema.PACKED))
    assert json.dumps(record.config)
