"""What counts as the same run, what replaces a record, and what a record leaves open: nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness import execute
from harness.models import anatomy
from harness.models.anatomy import FAMILIES
from harness.record.request import matcher_of_record, request_key
from harness.record.schema import Record
from harness.runtime.errors import UserError


def test_the_recorded_configuration_has_nothing_open(typed: Callable, options: list[str]) -> None:
    record = typed(*options).record
    config = record["config"]
    assert (config["device"], config["dtype"], config["evaluation_window"]) == ("cpu", "float32", 32)
    assert (config["calibration"]["length"], config["calibration"]["seed"]) == (32, 0)
    protocol = record["provenance"]["data"]["embedded-a"]["protocol"]
    assert (protocol["id"], protocol["window"]) == (record["measures"][0]["protocol"], 32)


@pytest.mark.parametrize("change", ["evaluation_window=32", "dtype=float32", "calibration.seed=0"])
def test_a_default_that_is_spelt_out_is_the_same_run_and_the_same_question(
    change: str, typed: Callable, options: list[str]
) -> None:
    record = typed(*options).record
    assert "found" in typed(*options, change).err
    explicit = typed(*options, change, "seed=1").record["config"] | {"seed": 0}
    explicit["calibration"]["seed"] = 0
    assert request_key(explicit) in matcher_of_record(Record(**{**record, "measures": tuple(record["measures"])}))


def test_another_window_is_another_question(typed: Callable, options: list[str]) -> None:
    record = typed(*options, "evaluation_window=16").record
    left_open = record["config"] | {"evaluation_window": None}
    assert request_key(left_open) not in matcher_of_record(Record(**{**record, "measures": tuple(record["measures"])}))


def test_the_architecture_and_the_tokenizer_are_part_of_identity(
    typed: Callable, options: list[str], tiny: Path, tmp_path: Path
) -> None:
    def copy(name: str, file: str, **changes: object) -> str:
        folder = Path(shutil.copytree(tiny, tmp_path / name))
        content = json.loads((folder / file).read_text()) if (folder / file).is_file() else {}
        (folder / file).write_text(json.dumps(content | changes))
        rest = [text for text in options if not text.startswith("model.path")]
        return str(typed(*rest, f"model.path={folder}").record["fingerprint"])

    first = typed(*options).record["fingerprint"]
    assert copy("named", "config.json", transformers_version="4.0", _name_or_path="x") == first
    assert copy("epsilon", "config.json", rms_norm_eps=0.5) != first
    assert copy("words", "vocab.json", a=0) != first


def test_a_revised_layout_is_another_run(typed: Callable, options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    first = typed(*options, "method=magnitude").record["fingerprint"]
    whole = FAMILIES["llama"]
    monkeypatch.setitem(
        anatomy._KNOWN, "llama", replace(whole, attention=(whole.attention[0][::-1], *whole.attention[1:]))
    )
    again = typed(*options, "method=magnitude")
    assert "found" not in again.err and again.record["fingerprint"] != first


def test_nothing_to_evaluate_is_allowed(typed: Callable, options: list[str]) -> None:
    rest = [text for text in options if not text.startswith("evaluation")]
    done = typed(*rest, "evaluation=[]")
    assert done.status == 0, done.err
    assert done.record["measures"] == []
    assert done.record["sparsity"]["achieved"] == 0.5


def test_a_record_is_found_by_the_name_that_its_study_asks_for(typed: Callable, options: list[str]) -> None:
    first = typed(*options)
    other = typed(*options, "model.name=mine")
    assert "found ok record" in other.err and other.out != first.out
    assert other.record["config"]["model"]["name"] == "mine"
    assert other.record | {"config": first.record["config"]} == first.record
    assert typed(*options).out == first.out and typed(*options, "model.name=mine").out == other.out


def test_a_record_of_a_copy_of_the_model_stays_as_it_is(typed: Callable, options: list[str], tmp_path: Path) -> None:
    """Both have one fingerprint and one file name, and the study that made it looks for its own path."""
    first = typed(*options)
    shutil.copytree(Path(first.record["config"]["model"]["path"]), tmp_path / "copy")
    rest = [text for text in options if not text.startswith("model.path")]
    other = typed(*rest, f"model.path={tmp_path / 'copy'}")
    assert (other.out, other.record) == (first.out, first.record)


def test_a_forced_record_is_the_one_found_under_its_name(typed: Callable, options: list[str]) -> None:
    mine = [*options, "model.name=zebra"]
    typed(*options)
    typed(*mine)
    forced = typed(*mine, "force=true").record
    assert forced["attempt"] == 2 and typed(*mine).record == forced


def test_a_failure_does_not_replace_a_finished_record(
    typed: Callable, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = typed(*options)
    with monkeypatch.context() as patch:
        patch.setattr("harness.compress.prune", lambda *_: 1 / 0)
        forced = typed(*options, "force=true")
    assert forced.status == 1
    assert forced.out == first.out
    assert "the earlier ok record stays" in forced.err
    assert forced.record == first.record


def test_a_folder_with_another_model_is_not_this_runs(typed: Callable, options: list[str], tmp_path: Path) -> None:
    save = f"save={tmp_path / 'kept'}"
    typed(*options, "sparsity=0.5")
    typed(*options, "sparsity=0.7", save)
    assert "found" not in typed(*options, "sparsity=0.5", save).err
    assert "found" in typed(*options, "sparsity=0.5", save).err
    assert "found" not in typed(*options, "sparsity=0.7", save).err


def test_a_finished_record_is_found_before_a_failed_one(typed: Callable, options: list[str], tmp_path: Path) -> None:
    first = typed(*options, "method=none", "seed=1")
    failed = first.record | {"status": "failed", "reason": "made up"}
    name = Path(first.out.strip().removeprefix("record: ")).name.replace("_s1_", "_s0_")
    (tmp_path / "records" / name).write_text(json.dumps(failed))
    assert "found ok record" in typed(*options, "method=none", "seed=1").err


@pytest.mark.parametrize("group", ["recovery", "planner"])
def test_what_a_model_without_a_method_is_asked(group: str, typed: Callable, options: list[str]) -> None:
    config = typed(*options, "method=none").record["config"]
    touched = config | {group: {"name": "x"}}
    assert request_key(config) == request_key(config | {"seed": 7, "sparsity": 0.9})
    assert request_key(touched) != request_key(touched | {"seed": 7})
    assert request_key(touched) == request_key(touched | {"sparsity": 0.9, "allocator": {"name": "owl"}})


def test_the_device_is_part_of_the_question(typed: Callable, options: list[str]) -> None:
    record = typed(*options).record
    answers = matcher_of_record(Record(**{**record, "measures": tuple(record["measures"])}))
    assert request_key(record["config"] | {"device": "auto"}) in answers
    assert request_key(record["config"] | {"device": "cuda"}) not in answers


def test_a_login_node_needs_no_memory(typed: Callable, options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from harness import compose

    monkeypatch.setattr("harness.needs.free_memory", lambda: 1)
    assert "GiB" in typed(*options).err
    compose.register()
    points = [("", compose.compose_run([*options, "device=cuda"]))]
    assert execute.check_points(points, here=False) == []
    with pytest.raises(UserError, match="not there"):
        execute.check_points(points, here=True)


def test_settings_of_evaluations_can_be_set_and_are_recorded(typed: Callable, options: list[str]) -> None:
    rest = [text for text in options if not text.startswith("evaluation")]
    task = ["evaluation=[embedded-cloze]", "evaluation_limit=2", "method=none", "model.window=64"]
    task += ["numerics=exact"]  # batches of lm-eval's loop
    record = typed(*rest, *task, "evaluation.embedded-cloze.batch_size=4").record
    assert record["config"]["evaluation"]["embedded-cloze"]["batch_size"] == 4
    protocol = record["provenance"]["data"]["embedded-cloze"]["protocol"]
    assert (protocol["fewshot"], protocol["bos"], protocol["batch_size"]) == (0, "none", 4)


DROP = """
from dataclasses import dataclass
from harness.catalogue import component
from harness.core.structure import Cut, Plan


@component("planner", "drop")
@dataclass(frozen=True)
class Drop:
    block: int = 0

    def plan(self, view):
        return Plan(Cut.of_blocks([self.block]))
"""


def test_a_planner_works_without_a_method(typed: Callable, options: list[str], tmp_path: Path) -> None:
    (tmp_path / "drop.py").write_text(DROP)
    dense = typed(*options, "method=none").record
    shorter = typed(*options, "method=none", f"plugins={tmp_path / 'drop.py'}", "planner=drop").record
    assert (dense["plan"], shorter["plan"]) == ({}, {"edit": {"block": [0]}})
    assert len(shorter["sites"]) == len(dense["sites"]) // 2
    assert shorter["measures"][0]["value"] != dense["measures"][0]["value"]
    refused = typed(*options, "method=none", f"plugins={tmp_path / 'drop.py'}", "planner=drop", "planner.block=9")
    assert refused.status == 2
    assert "the model has the blocks 0-1" in refused.err
