"""Which models were left as they were, in configurations, names of records, questions and tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.record import schema
from harness.record.dense import is_dense, names_of
from harness.record.request import matcher_of_record, request_key
from harness.record.schema import Record
from harness.runtime.errors import UserError
from tests.record.test_trackers import CONFIG

ASKED = {
    "model": {"name": "tiny", "path": "here", "window": 8},
    "calibration": {"corpus": "c4", "length": None, "seed": None},
    "evaluation": {},
    "evaluation_window": None,
    "device": "cpu",
    "dtype": "float32",
}
DENSE = CONFIG | ASKED | {"method": {"name": "none"}}
PLANNED = {"name": "block_influence", "amount": 1.0}


def of(config: dict[str, Any]) -> Record:
    return Record("ok", "", "0" * 16, config)


@pytest.mark.parametrize("kind", ["method", "planner", "conversion", "recovery"])
def test_whatever_changes_a_model_makes_it_other_than_dense(kind: str) -> None:
    assert is_dense(names_of(DENSE))
    assert not is_dense(names_of(DENSE | {kind: {"name": "something"}}))


def test_names_tell_plans_apart_and_others_are_as_they_were() -> None:
    assert of(CONFIG).slug == "tiny_wanda_uniform_2of4_all_s0"
    assert of(DENSE).slug == "tiny_none_all_s0"
    assert of(DENSE | {"planner": PLANNED}).slug == "tiny_none_block-influence_all_s0"
    both = CONFIG | {"planner": PLANNED, "recovery": {"name": "lora"}}
    assert of(both).slug == "tiny_wanda_uniform_2of4_block-influence_lora_all_s0"


def test_a_question_knows_what_a_planner_is_to_do() -> None:
    """A dense model has no calibration and no seed; one that a planner cut has, and the settings of the planner."""
    cut = DENSE | {"planner": PLANNED}
    assert (
        request_key(DENSE) == request_key(DENSE | {"seed": 7}) == request_key(DENSE | {"conversion": {"name": "none"}})
    )
    assert request_key(cut) != request_key(cut | {"seed": 7})
    assert request_key(cut) != request_key(DENSE | {"planner": PLANNED | {"amount": 2.0}})
    assert request_key(cut) not in matcher_of_record(of(DENSE)) and request_key(cut) != request_key(DENSE)
    assert request_key(DENSE | {"conversion": {"name": "readme"}}) != request_key(DENSE)


def test_what_a_planner_told_is_written_and_read(tmp_path: Path) -> None:
    plan = {"edit": {"block": [2]}, "scores": [0.5, 0.25], "order": [["block", 2]]}
    record = Record("ok", "", "0" * 16, DENSE | {"planner": PLANNED}, plan=plan, parameters={"dense": 9, "saved": None})
    assert schema.read(schema.write(record, tmp_path)) == record


def test_older_records_have_neither(tmp_path: Path) -> None:
    path = schema.write(of(CONFIG), tmp_path)
    content = json.loads(path.read_text())
    del content["plan"], content["parameters"]
    path.write_text(json.dumps(content | {"edit": {"dropped_blocks": []}}))
    found = schema.read(path)
    assert found.plan == found.parameters == {}


@pytest.mark.parametrize("broken", [{"plan": []}, {"parameters": {"model": "many"}}, {"parameters": 3}])
def test_a_file_that_tells_neither_is_no_record(tmp_path: Path, broken: dict[str, Any]) -> None:
    path = schema.write(of(CONFIG), tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | broken))
    with pytest.raises(UserError, match="not a record"):
        schema.read(path)
