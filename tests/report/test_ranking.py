"""The ranking of methods, by hand on a few cells; how often its intervals hold; what is written."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.record.schema import Record
from harness.report.outputs import Subject, write_outputs
from harness.report.profile import factors, profile
from harness.report.ranking import Contest, against, balanced, contest, group_columns, standings
from harness.report.tidy import Cell, tidy
from harness.runtime.errors import UserError

LAYOUT: dict[str, Any] = {
    "columns": "task",
    "rows": ["model", "sparsity", "method"],
    "ranking": {"of": "method", "over": ["model", "sparsity", "seed", "task"], "against": "b"},
}
GPU = {"gpu": "NVIDIA H200"}


def cell(
    method: str, value: float | None, seed: int = 0, sparsity: Any = 0.5, task: str = "t", metric: str = "perplexity",
    achieved: float | None = None, seconds: float = 2.0, hardware: dict[str, Any] = GPU, **axes: Any,
) -> Cell:  # fmt: skip
    """A point of one model with one measure."""
    axes = {"model": "m", "method": method, "sparsity": sparsity, "allocator": "uniform", "seed": seed} | axes
    asked = 0.75 if sparsity == "1of4" else sparsity
    measure = {"task": task, "metric": metric, "value": value, "stderr": None, "samples": 9, "protocol": "p#0"}
    record = Record(
        "ok", "", f"{task} {axes}", {"model": {"name": axes["model"]}, "method": {"name": method}},
        sparsity={"asked": asked, "achieved": asked if achieved is None else achieved, "model": 0.0},
        measures=(measure,), stages={"prune": {"seconds": seconds}}, provenance={"hardware": hardware},
    )  # fmt: skip
    return Cell(axes, record, "done", "")


def made(cells: list[Cell], **ranking: Any) -> Contest:
    layout = LAYOUT | {"ranking": LAYOUT["ranking"] | ranking}
    return contest(tidy("s", "proxy", cells, layout), cells, layout)


THREE = [
    cell("a", 10.0), cell("b", 20.0), cell("c", 40.0),
    cell("a", 30.0, seed=1), cell("b", 20.0, seed=1), cell("c", 20.0, seed=1),
    cell("a", 5.0, sparsity="1of4"), cell("b", 5.0, sparsity="1of4"), cell("c", None, sparsity="1of4"),
    cell("a", 6.0, seed=1, sparsity="1of4"), cell("b", 3.0, seed=1, sparsity="1of4"),
    cell("c", 3.3, seed=1, sparsity="1of4"),
    cell("none", 1.0),
]  # fmt: skip
"""a ranks 1, 3, 1.5 (tie), 3; b 2, 1.5 (tie), 1.5, 1; c 3, 1.5, 3 (not finite), 2."""


def test_ranks_and_their_interval_over_seeds() -> None:
    """By seed: a 1.25 and 3, b 1.75 and 1.25, c 3 and 1.75; t of one degree of freedom, 12.7062 · s/√2."""
    rows = standings(made(THREE)).set_index("method")
    assert list(rows.index) == ["b", "a", "c"]  # the best first
    assert list(rows["rank"]) == pytest.approx([1.5, 2.125, 2.375])
    assert set(rows["seeds"]) == {2} and set(rows["cells"]) == {4} and set(rows["ranked"]) == {4}
    assert list(rows["low"]) == [1, 1, 1] and list(rows["high"]) == [3, 3, 3]  # wider than there are ranks: cut off


def test_the_interval_of_a_mean_rank_by_hand() -> None:
    """Ten blocks: a is first in all of seed 0, in nine of seeds 1 and 2; mean 16/15, s = 0.057735, ± 4.3027 · s/√3."""
    cells = []
    for block, seed in itertools.product(range(10), range(3)):
        first = not (block == 9 and seed > 0)
        cells += [cell("a", 1.0 if first else 3.0, seed, model=f"m{block}"), cell("b", 2.0, seed, model=f"m{block}")]
    rows = standings(made(cells)).set_index("method")
    half = 4.30265 * 0.057735 / math.sqrt(3)
    assert rows.loc["a", "rank"] == pytest.approx(16 / 15) and rows.loc["b", "rank"] == pytest.approx(29 / 15)
    assert rows.loc["a", "high"] == pytest.approx(16 / 15 + half, rel=1e-4) and rows.loc["a", "low"] == 1
    assert rows.loc["b", "low"] == pytest.approx(29 / 15 - half, rel=1e-4) and rows.loc["b", "high"] == 2


def test_profile_steps() -> None:
    """Factors of a 1, 1.5, 1, 2; of b 2, 1, 1, 1; of c 4, 1, ∞, 1.1."""
    losses = made(THREE).losses
    found = {(place[1], place[-1]): list(row) for place, row in factors(losses).iterrows()}
    assert found[("0.5", 0)] == [1, 2, 4] and found[("0.5", 1)] == [1.5, 1, 1]
    assert found[("1of4", 0)] == [1, 1, math.inf] and found[("1of4", 1)] == [2, 1, pytest.approx(1.1)]
    steps = {
        name: list(zip(rows["factor"], rows["share"], strict=True))
        for name, rows in profile(losses).groupby("competitor")
    }
    assert steps["a"] == [(1, 0.5), (1.5, 0.75), (2, 1)]
    assert steps["b"] == [(1, 0.75), (2, 1)]
    assert steps["c"] == [(1, 0.25), (pytest.approx(1.1), 0.5), (4, 0.75)]  # the cell that is not finite never counts
    rows = standings(made(THREE)).set_index("method")
    assert list(rows["best"]) == [0.75, 0.5, 0.25] and list(rows["within 2"]) == [1, 1, 0.5]
    assert rows.loc["c", "within 1.1"] == 0.5


def test_a_cell_in_which_all_collapse_is_within_no_factor() -> None:
    found = made([cell("a", None), cell("b", None)])
    assert (factors(found.losses) == math.inf).all(axis=None) and profile(found.losses).empty
    assert list(standings(found)["rank"]) == [1.5, 1.5]


def test_ratios_are_paired_and_geometric() -> None:
    """a over b: 0.5 and 1.5 at 0.5, 1 and 2 at 1of4; c over b at 1of4: 1.1, and a cell that is not finite."""
    rows = against(made(THREE), "b", ["level"]).set_index(["level", "method"])
    half = rows.loc[("0.5", "a")]
    assert half["ratio"] == pytest.approx(math.sqrt(0.75)) and (half["seeds"], half["cells"], half["below"]) == (
        2,
        2,
        1,
    )
    width = 12.7062 * abs(math.log(0.5) - math.log(1.5)) / 2  # s/√2 of two values is half their distance
    assert half["high"] == pytest.approx(math.sqrt(0.75) * math.exp(width), rel=1e-4)
    assert half["low"] == pytest.approx(math.sqrt(0.75) * math.exp(-width), rel=1e-4)
    assert rows.loc[("1of4", "a"), "ratio"] == pytest.approx(math.sqrt(2))
    broken = rows.loc[("1of4", "c")]
    assert broken["ratio"] == pytest.approx(1.1) and (broken["seeds"], broken["not finite"]) == (1, 1)
    assert math.isnan(broken["low"])
    assert ("0.5", "b") not in rows.index


def _twice(record: Record) -> Record:
    """The record of two tasks."""
    (measure,) = record.measures
    return dataclasses.replace(record, measures=(measure, {**measure, "task": "u", "protocol": "u#0"}))


def test_accuracies_rank_the_other_way_round() -> None:
    layout = LAYOUT | {"metric": "acc"}
    cells = [cell("a", 0.6, metric="acc"), cell("b", 0.3, metric="acc"), cell("c", 0.0, metric="acc")]
    found = contest(tidy("s", "proxy", cells, layout), cells, layout)
    assert list(standings(found)["method"]) == ["a", "b", "c"]
    assert list(factors(found.losses).iloc[0]) == pytest.approx([1, 2, math.inf])
    means = [one._replace(record=_twice(one.record)) for one in cells[:2] if one.record]
    both = contest(tidy("s", "proxy", means, layout | {"mean": True}), means, layout)
    assert sorted(both.rows["task"].unique()) == ["t", "u"]  # their mean is no task of its own


def test_only_cells_that_all_have_count() -> None:
    """d has one cell of four; e was never run and takes no part."""
    waiting = Cell({"model": "m", "method": "e", "sparsity": 0.5, "allocator": "uniform", "seed": 0}, None, "to do", "")
    found = made([*THREE, cell("d", 1.0), waiting])
    assert found.competitors == ("a", "b", "c", "d") and found.left_out == 3 and len(found.losses) == 1
    some = made([*THREE, cell("d", 1.0)], among=["a", "b", "c"])
    assert some.left_out == 0 and len(some.losses) == 4


def test_means_are_of_blocks_with_the_same_seeds() -> None:
    """A block of one seed would move that seed's mean alone; it counts in the profile, and in its own ratios."""
    lone = [cell("a", 9.0, sparsity=0.9), cell("b", 1.0, sparsity=0.9), cell("c", 1.1, sparsity=0.9)]
    rows = standings(made([*THREE, *lone])).set_index("method")
    assert list(rows["rank"]) == pytest.approx([1.5, 2.125, 2.375]) and set(rows["ranked"]) == {4}
    assert set(rows["cells"]) == {5} and rows.loc["a", "best"] == 0.4
    alone = against(made([*THREE, *lone]), "b", ["level"]).set_index(["level", "method"]).loc[("0.9", "a")]
    assert alone["ratio"] == pytest.approx(9) and alone["seeds"] == 1 and math.isnan(alone["low"])
    assert balanced(pd.DataFrame()).empty


def test_a_forgotten_axis_is_named() -> None:
    cells = [cell("a", 1.0), cell("a", 2.0, allocator="owl"), cell("b", 1.0)]
    with pytest.raises(UserError, match="several values in a cell; add allocator to its `over`"):
        made(cells)
    with pytest.raises(UserError, match="add sparsity to its `over`"):
        made([cell("a", 1.0), cell("a", 2.0, sparsity=0.7)], over=["model", "task"])
    cells = [cell("a", 1.0, **{"method.alpha": 1}), cell("a", 2.0, **{"method.alpha": 2})]
    with pytest.raises(UserError, match=r"add method\.alpha to its `over`"):
        made(cells)
    assert group_columns(made([cell("a", 1.0)], over=["model", "sparsity", "allocator", "task"])) == [
        "level",
        "allocator",
    ]


def test_seconds_and_what_was_achieved_stand_beside_the_ranks() -> None:
    cells = [
        cell("a", 1.0, seconds=1), cell("a", 1.0, seed=1, seconds=3, achieved=0.52),
        cell("b", 2.0, seconds=8), cell("b", 2.0, seed=1, seconds=10, achieved=0.499),
    ]  # fmt: skip
    rows = standings(made(cells)).set_index("method")
    assert list(rows["seconds"]) == [2, 9]
    assert list(rows["least beyond"]) == pytest.approx([0, -0.001]) and list(rows["most beyond"]) == pytest.approx(
        [0.02, 0]
    )
    assert list(against(made(cells), "b", [])["unequal"]) == [True]
    assert list(against(made([cell("a", 1.0, achieved=0.5005), cell("b", 2.0)]), "b", [])["unequal"]) == [False]
    cells[0] = cell("a", 1.0, hardware={"gpu": None, "threads": 2})
    assert standings(made(cells))["seconds"].isna().all()  # two machines are not compared


def drawn(rng: np.random.Generator, shift: float) -> Contest:
    """Four blocks, three seeds, methods a and b; the calibration text of a seed moves all blocks of a method."""
    rows = []
    for seed in range(3):
        shared = rng.normal(0, 0.05, 2)
        for block, (place, name) in itertools.product(range(4), enumerate("ab")):
            log = block + shift * place + shared[place] + rng.normal(0, 0.05)
            rows.append({"model": f"m{block}", "seed": seed, "method": name, "loss": math.exp(log), "achieved": 0.5})
    return Contest(pd.DataFrame(rows), "method", ("model", "seed"), ("a", "b"), 0)


def test_intervals_hold_as_often_as_they_say() -> None:
    """300 draws: the true ratio is inside 95 % of the intervals, within three standard errors (3.8 points)."""
    rng, shift = np.random.default_rng(1), 0.1
    inside = 0
    for _ in range(300):
        (row,) = against(drawn(rng, shift), "a", []).to_dict("records")
        inside += row["low"] < math.exp(shift) < row["high"]
    assert inside / 300 == pytest.approx(0.95, abs=0.038)


def test_a_ranking_is_written_beside_the_table(tmp_path: Path) -> None:
    subject = Subject("s", "proxy", "A title", LAYOUT, ("t",))
    write_outputs(subject, THREE, tmp_path / "one")
    names = {path.name for path in (tmp_path / "one").glob("ranking*")}
    assert names == {
        "ranking.md", "ranking.csv", "ranking_ratios.csv", "ranking_profile.csv", "ranking.png", "ranking.svg"
    }  # fmt: skip
    text = (tmp_path / "one" / "ranking.md").read_text()
    assert "| b      | 1.50 [1.00, 3.00] | 75%  | 75%   | 100% | 2         | +0.00  |" in text
    assert (
        "| 0.5      | 0.866" in text and "over 4 cells, those of the same 2 seeds" in text and "on NVIDIA H200" in text
    )
    assert pd.read_csv(tmp_path / "one" / "ranking.csv")["method"].tolist() == ["b", "a", "c"]
    write_outputs(subject, [*THREE, cell("d", 1.0)], tmp_path / "two")
    assert "3 cells are left out, which some lack." in (tmp_path / "two" / "ranking.md").read_text()
    write_outputs(subject, [cell("a", 1.0), cell("none", 1.0)], tmp_path / "three")  # nobody to be ranked against
    assert not list((tmp_path / "three").glob("ranking*"))
    others = [one for one in THREE if one.axes["method"] != "b"]  # as in a study narrowed to them
    write_outputs(subject, others, tmp_path / "narrowed")
    assert "over that of" not in (tmp_path / "narrowed" / "ranking.md").read_text()
    assert not (tmp_path / "narrowed" / "ranking_ratios.csv").exists()
    write_outputs(Subject("s", "proxy", "A title", {**LAYOUT, "ranking": None}, ("t",)), THREE, tmp_path / "four")
    assert not list((tmp_path / "four").glob("ranking*"))
