"""The command that shows an allocation: tables of records and files, what it writes, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.record.schema import Record, write
from harness.report.allocation import by_site, to_markdown

SIZES = {"self_attn.q_proj": 100, "mlp.up_proj": 300}


def sites(*asked: Any) -> dict[str, dict[str, Any]]:
    """Two matrices in each of several blocks."""
    names = [(f"model.layers.{i}.{name}", size) for i in range(len(asked) // 2) for name, size in SIZES.items()]
    return {
        name: {"asked": value, "achieved": value, "pattern": "unstructured", "parameters": size}
        for (name, size), value in zip(names, asked, strict=True)
    }


def recorded(folder: Path, sparsity: Any = 0.6, method: str = "wanda", **facts: Any) -> Path:
    config: dict[str, Any] = {"model": {"name": "tiny"}, "method": {"name": method}, "allocator": {"name": "owl"}}
    config |= {"sparsity": sparsity, "scope": "all", "seed": 0}
    told = {"sites": sites(0.5, 0.75, 0.25, 1.0), "provenance": {"weights_sha256": "abc"}} | facts
    return write(Record("ok", "", "f", config, **told), folder)


def rows(markdown: str) -> list[str]:
    return [" ".join(line.split()) for line in markdown.splitlines() if line.startswith("|")]


def test_a_record_is_shown_and_written(typed: Callable, tmp_path: Path) -> None:
    ran = typed("allocation", recorded(tmp_path), tmp_path / "out")
    assert ran.status == 0, ran.err
    assert rows(ran.out) == [
        *("| block | q_proj | up_proj | mean |", "| ----- | ------ | ------- | ----- |"),
        *("| 0 | 0.500 | 0.750 | 0.688 |", "| 1 | 0.250 | 1.000 | 0.812 |", "| mean | 0.375 | 0.875 | 0.750 |"),
    ]
    assert ran.out.splitlines()[0] == "### Allocation of tiny: 0.7500 zeros"
    folder = tmp_path / "out"
    assert {path.name for path in folder.iterdir()} == {
        f"allocation.{end}" for end in ("json", "md", "csv", "svg", "png")
    }
    saved = json.loads((folder / "allocation.json").read_text())
    assert (saved["model"], saved["weights_sha256"], saved["sparsity"]) == ("tiny", "abc", 0.75)
    assert list(pd.read_csv(folder / "allocation.csv").columns) == [
        "site",
        "block",
        "kind",
        "asked",
        "pattern",
        "parameters",
    ]
    again = typed("allocation", folder / "allocation.json", tmp_path / "again")
    assert again.out.splitlines()[:-1] == ran.out.splitlines()[:-1]
    for name in ("allocation.json", "allocation.svg"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_patterns_are_shown_as_such(typed: Callable, tmp_path: Path) -> None:
    ran = typed("allocation", recorded(tmp_path, sparsity="1of4"))
    assert rows(ran.out)[2:] == [
        "| 0 | 2of4 | 1of4 | 0.688 |",
        "| 1 | 3of4 | 0of4 | 0.812 |",
        "| mean | 0.375 | 0.875 | 0.750 |",
    ]


def test_a_plain_file_has_unweighted_means_and_experts_share_a_cell(tmp_path: Path) -> None:
    names = ["layers.0.experts.0.up", "layers.0.experts.1.up", "lm_head"]
    facts = {name: {"asked": i / 4, "pattern": "unstructured", "parameters": None} for i, name in enumerate(names)}
    content = {"model": None, "weights_sha256": None, "sparsity": 0.25, "sites": facts}
    assert list(by_site(content)["block"].fillna(-1)) == [0, 0, -1]
    assert rows(to_markdown(content))[2:] == [
        *("| 0 | 0.125 | | 0.125 |", "| — | | 0.500 | 0.500 |"),
        "| mean | 0.125 | 0.500 | 0.250 |",
    ]
    assert "Means are not weighted" in to_markdown(content)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "name a file"),
        (["a", "b", "c"], "name a file"),
        (["nothing.json"], "the allocation nothing.json cannot be read: No such file or directory"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], says: str, typed: Callable) -> None:
    ran = typed("allocation", *arguments)
    assert (ran.status, ran.out) == (2, "")
    assert says in ran.err
    assert ran.err.count("\n") == 1


def test_records_without_an_allocation_and_folders_that_are_files(typed: Callable, tmp_path: Path) -> None:
    for facts, says in (({"method": "none"}, "the record of a dense model"), ({"sites": {}}, "a run that was ok")):
        ran = typed("allocation", recorded(tmp_path, **facts))
        assert (ran.status, says in ran.err) == (2, True)
    file = recorded(tmp_path)
    assert typed("allocation", file, file).status == 2
    assert "did you mean allocation" in typed("alocation", file).err
