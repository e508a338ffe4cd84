"""Allocations out of files: every form gives the same patterns, and what does not fit is said."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from helpers import FakeBlock, FakeView, normal

from harness.allocators.file import File, read_allocation
from harness.core.allocation import Budget
from harness.core.interfaces import Allocator
from harness.core.pattern import NofM, Unstructured
from harness.runtime.errors import Refusal, UserError

BLOCKS = [{f"model.layers.{i}.up": (8, 16), f"model.layers.{i}.down": (16, 24)} for i in range(2)]
SIZES = {site: rows * columns for block in BLOCKS for site, (rows, columns) in block.items()}
FREE = dict(zip(SIZES, (0.8, 0.5, 0.9, 0.6), strict=True))
MIXED = dict(zip(SIZES, ("0of4", "3of4", "1of4", "2of4"), strict=True))
MEAN = sum(FREE[site] * size for site, size in SIZES.items()) / sum(SIZES.values())  # 0.625


@dataclasses.dataclass
class ModelView(FakeView):
    """Two blocks of a model whose weights have this hash."""

    weights_sha256: str | None = "abc"


def view(blocks: int = 2, **facts: Any) -> ModelView:
    weights = [{site: normal(*shape) for site, shape in block.items()} for block in BLOCKS[:blocks]]
    return ModelView([FakeBlock(i, content, {}) for i, content in enumerate(weights)], **facts)


def allocation(values: Mapping[str, Any], **facts: Any) -> dict[str, Any]:
    """An `allocation.json`."""
    sites = {
        site: {"pattern": value if isinstance(value, str) else "unstructured", "parameters": SIZES[site]}
        | {"asked": 1 - int(value[0]) / 4 if isinstance(value, str) else value}
        for site, value in values.items()
    }
    return {"model": "tiny", "weights_sha256": "abc", "sparsity": 0.625, "sites": sites} | facts


def record(values: Mapping[str, Any], **facts: Any) -> dict[str, Any]:
    """A record of it, in which one matrix has not achieved its pattern."""
    mixed = any(isinstance(value, str) for value in values.values())
    config = {"model": {"name": "tiny"}, "method": {"name": "wanda"}, "sparsity": "2of4" if mixed else 0.6}
    sites = allocation(values)["sites"] | {}
    last = list(sites)[-1]
    sites[last] = sites[last] | {"pattern": "unstructured", "achieved": 0.1}
    return {
        **{"status": "ok", "reason": "", "schema": 1, "fingerprint": "f", "config": config, "sites": sites},
        **{"provenance": {"weights_sha256": "abc"}, **facts},
    }


@pytest.fixture
def put(tmp_path: Path) -> Any:
    def write(content: Any, name: str = "some.json") -> File:
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return File(str(tmp_path / name))

    return write


def test_it_is_an_allocator_that_reads_nothing_until_asked() -> None:
    assert isinstance(File(), Allocator)
    with pytest.raises(UserError, match=r"allocator=file needs allocator.path=<file>"):
        File().check()


@pytest.mark.parametrize("form", [allocation, record, dict])
def test_every_form_gives_its_patterns(form: Any, put: Any) -> None:
    free, mixed = put(form(FREE), "a.json"), put(form(MIXED), "b.json")
    free.check()
    assert free.allocate(view(), Budget(MEAN)) == {site: Unstructured(value) for site, value in FREE.items()}
    budget = Budget.of_pattern(NofM(2, 4))
    assert mixed.allocate(view(), budget) == {site: NofM(int(text[0]), 4) for site, text in MIXED.items()}


def test_identity_is_what_the_file_says(put: Any) -> None:
    backwards = dict(reversed(FREE.items()))
    forms = [allocation(FREE), record(FREE), FREE, backwards, allocation(FREE, weights_sha256=None)]
    same = {put(form, f"{i}.json").identity()["path"] for i, form in enumerate(forms)}
    assert len(same) == 1
    other = [FREE | {next(iter(FREE)): 0.81}, MIXED, allocation(MIXED), record(MIXED)]
    others = [put(form, f"other{i}.json").identity()["path"] for i, form in enumerate(other)]
    assert len(set(others)) == 2 and not same & set(others)


def test_the_scope_may_be_less_than_the_file(put: Any) -> None:
    found = put(allocation(FREE)).allocate(view(blocks=1), Budget(0.575))
    assert list(found) == list(BLOCKS[0])


def test_a_saved_allocation_is_what_was_read(put: Any) -> None:
    assert read_allocation(put(record(MIXED)).path).plain() == allocation(MIXED, sparsity=pytest.approx(0.5))
    plain = read_allocation(put(FREE).path).plain()
    assert (plain["model"], plain["sparsity"]) == (None, pytest.approx(0.7))  # unweighted: nothing tells the sizes
    assert {entry["parameters"] for entry in plain["sites"].values()} == {None}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is no allocation: Expecting"),
        ("[0.7]", "is no allocation: "),
        ({}, "it has no sites"),
        ({"sites": {"a": {"parameters": 3}}}, "it lacks 'asked'"),
        ({"a": "half"}, "is no allocation: could not convert"),
        ({"a": 1.5}, "1.5 is neither a fraction of zeros nor a pattern such as 1of4"),
        ({"a": True}, "True is neither"),
        ({"a": "5of4"}, "5of4 is neither"),
        ({"a": None}, "is no allocation: "),
        ({"a": "1of4", "b": 0.5}, "fractions alone or of patterns of one M"),
        ({"a": "1of4", "b": "2of8"}, "fractions alone or of patterns of one M"),
        *(({"sites": {"a": {"asked": 0.5, "parameters": n}}}, "number of weights of a") for n in (0, -1, 10**400)),
        ('{"sites": {"a": {"asked": 0.5, "parameters": 1e999}}}', "is no allocation: cannot convert float infinity"),
        ({"a": 10**400}, "is no allocation: int too large"),
        ({"model": 3, "sites": {"a": 0.5}}, "its model or its hash is no text"),
        ({"\ud800": 0.5}, "is no allocation: "),
        *(
            (record(form, sites={"a": {"asked": asked, "parameters": 3}}), "is no allocation: ")
            for form in (FREE, MIXED)
            for asked in (1e999, float("nan"), -7)
        ),
        (record(FREE, sites={}, status="failed"), "the record of a run that was failed"),
        (record(FREE, config={"method": {"name": "none"}}), "the record of a dense model"),
    ],
)
def test_a_file_that_is_no_allocation(content: Any, says: str, put: Any) -> None:
    with pytest.raises(UserError, match=says):
        put(content).check()


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path, says in ((tmp_path / "no.json", "the allocation .* cannot be read: "), (tmp_path, "is not a file")):
        with pytest.raises(UserError, match=says):
            File(str(path)).check()


@pytest.mark.parametrize(
    ("content", "asked", "says"),
    [
        ({"other.0.up": 0.7}, Budget(0.7), "names no matrix of this model or scope; it belongs to another model"),
        (allocation(FREE, weights_sha256="def"), Budget(MEAN), r"was made for other weights \(tiny\)"),
        (dict(list(FREE.items())[:3]), Budget(0.7), r"says nothing of model.layers.1.down \(1 missing\)"),
        (
            allocation(FREE, sites=allocation(FREE)["sites"] | {"model.layers.0.up": {"asked": 0.8, "parameters": 9}}),
            Budget(MEAN),
            "has 9 weights in model.layers.0.up, not 128; it belongs to another model",
        ),
        (FREE, Budget(0.7), r"has a mean of 0.6250 in fractions, the run asks for 0.7000 .*; write sparsity=0.625\.$"),
        (FREE, Budget.of_pattern(NofM(2, 4)), r"the run asks for 0.5000 in patterns of 4; write sparsity=0.625\.$"),
        (dict.fromkeys(FREE, "1of4"), Budget(0.75), r"0.7500 in patterns of 4, .* in fractions; write sparsity=1of4"),
        (dict.fromkeys(FREE, "1of4"), Budget.of_pattern(NofM(2, 8)), "write sparsity=1of4"),
        (MIXED | {"model.layers.0.up": "1of4"}, Budget.of_pattern(NofM(2, 4)), "no sparsity=Nof4 has that mean"),
    ],
)
def test_what_the_run_does_not_ask_for_is_refused(content: Any, asked: Budget, says: str, put: Any) -> None:
    with pytest.raises(Refusal, match=says):
        put(content).allocate(view(), asked)


def test_without_a_known_hash_the_names_decide(put: Any) -> None:
    file = put(allocation(FREE, weights_sha256="def"))
    assert list(file.allocate(view(weights_sha256=None), Budget(MEAN))) == list(FREE)
