"""What searches and verifications told: trajectories, scatters, and the measures that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import pytest

from harness.report.diagnostics import generations, in_block, units
from harness.report.layout import named_axes
from harness.report.outputs import Subject, write_outputs
from harness.report.scatter import correlation, scatter
from harness.report.tidy import Cell
from harness.report.trajectory import trajectory
from harness.runtime.errors import UserError
from tests.report.test_further_axes import cell

matplotlib.use("Agg")

MATRICES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
LAYOUT = {"rows": ["model", "sparsity", "allocator.start"], "columns": "task"}


def search(lowest: float, objective: str = "nll", count: int = 20) -> dict[str, Any]:
    """A search that halves its distance to `lowest` every few generations."""
    told = [
        {"generation": i, "evaluations": 32 * (i + 1), "best": lowest + 2**-i, "mean": lowest + 1.5 * 2**-i}
        for i in range(count)
    ]
    return {"search": {"objective": objective, "generations": told, "evaluations": 32 * count}}


def searched(model: str = "tiny-7b", sparsity: Any = 0.7, start: str = "uniform", seed: int = 0, **told: Any) -> Cell:
    lowest = 3 + (sparsity == 0.8) + 0.2 * (start == "uniform") + 0.05 * seed
    record = {"allocation": search(lowest, **told)}
    axes = {"model": model, "sparsity": sparsity, "allocator": "evopress", "allocator_start": start, "seed": seed}
    return cell(record=record, **axes)


def on(cell: Cell, axis: str, value: str) -> Cell:
    return cell._replace(axes={**cell.axes, axis: value})


def searches() -> list[Cell]:
    return [cell(5.0, method="none"), cell(6.0, allocator="uniform")] + [
        searched(model, sparsity, start, seed)
        for model in ("tiny-7b", "tiny-13b")
        for sparsity in (0.7, 0.8)
        for start in ("uniform", "sensitivity")
        for seed in (0, 1, 2)
    ]


def verified(kind: str, sensitivity: str = "fisher", seed: int = 0, model: str = "tiny-7b") -> Cell:
    """A verification in which one unit of the twelve is out of order."""
    sites = [f"model.layers.{i}.{name}" for i in range(12 if kind == "block" else 3) for name in MATRICES]
    names = [str(i) for i in range(12)] if kind == "block" else sites
    told = [
        {"unit": name, "kind": kind, "sensitivity": 10.0 ** (i / 3 + seed / 9), "loss": 3 + i**1.5 / 10}
        for i, name in enumerate(names)
    ]
    told[3]["loss"], told[4]["loss"] = told[4]["loss"], told[3]["loss"]
    verification = {"units": told, "dense": 2.9, "spearman": 1 - 6 * 2 / (12 * (144 - 1))}
    allocation = {"sensitivity": {"kind": sensitivity, "windows": 32}, "verification": verification}
    axes = {"allocator": "msp", "allocator_sensitivity": sensitivity, "allocator_units": kind, "seed": seed}
    return cell(record={"allocation": allocation}, model=model, **axes)


def panels(figure: Any) -> dict[str, Any]:
    plt.close(figure)
    return {axis.get_title(): axis for axis in figure.axes if axis.get_visible()}


def written(cells: Sequence[Cell], folder: Path, **layout: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    """table.csv and figure.csv of a study."""
    write_outputs(Subject("s", "proxy", "A title", LAYOUT | layout), cells, folder)
    return pd.read_csv(folder / "table.csv"), pd.read_csv(folder / "figure.csv")


def test_a_trajectory_is_written_with_its_numbers(tmp_path: Path) -> None:
    table, figure = written(
        searches(), tmp_path, metric="fitness", figure={"kind": "trajectory", "lines": "allocator.start"}
    )
    assert {path.name for path in tmp_path.glob("figure.*")} == {"figure.svg", "figure.png", "figure.csv"}
    assert list(figure.columns) == [
        *("model", "sparsity", "objective", "allocator.start", "line"),
        *("seed", "generation", "evaluations", "best", "mean"),
    ]
    assert len(figure) == 24 * 20
    found = table[table["task"] == "search"].set_index(["model", "sparsity", "allocator.start"])
    assert len(found) == 8
    best = found.loc[("tiny-13b", 0.8, "sensitivity")]
    assert (best["ours"], best["n"], best["sd"]) == (pytest.approx(4.05, abs=1e-4), 3, pytest.approx(0.05))
    assert "| search (nats) " in (tmp_path / "table.md").read_text()
    assert "4.050 ± 0.050" in (tmp_path / "table.md").read_text()


def test_seeds_are_thin_lines_and_their_mean_is_bold() -> None:
    found = panels(trajectory(plt, generations(searches(), ["allocator.start"])))
    assert list(found) == [f"{model}, sparsity {s}" for model in ("tiny-7b", "tiny-13b") for s in ("0.7", "0.8")]
    lines = found["tiny-7b, sparsity 0.7"].get_lines()
    assert [line.get_linewidth() for line in lines] == [0.8, 0.8, 0.8, 2.0] * 2
    handles, labels = found["tiny-7b, sparsity 0.7"].get_legend_handles_labels()
    assert labels == ["start uniform", "start sensitivity"]
    assert list(handles[0].get_xdata()[:2]) == [32, 64]
    assert handles[0].get_ydata()[0] == pytest.approx(3.25 + 1)


def test_the_mean_ends_where_the_first_seed_does() -> None:
    cells = [searched(seed=0, count=20), searched(seed=1, count=5)]
    (axis,) = panels(trajectory(plt, generations(cells, ["allocator.start"]))).values()
    assert [len(line.get_xdata()) for line in axis.get_lines()] == [20, 5, 5]


@pytest.mark.parametrize(
    ("by", "labels"),
    [
        (["allocator.start", "method.variant"], ["start uniform, default", "start uniform, released"]),
        (["seed"], ["evopress, default", "evopress, released"]),
        (["allocator.levels"], ["evopress, default", "evopress, released"]),
    ],
)
def test_lines_by_several_axes_and_whatever_else_varies(by: list[str], labels: list[str]) -> None:
    cells = [on(searched(sparsity="2of4"), "method.variant", variant) for variant in ("default", "released")]
    data = generations(cells, by)
    assert list(dict.fromkeys(data["line"])) == labels
    (panel,) = panels(trajectory(plt, data)).items()
    assert panel[0] == "tiny-7b, sparsity 2of4"
    assert panel[1].get_legend_handles_labels()[1] == labels


def test_a_figure_may_name_several_axes() -> None:
    figure = {"kind": "trajectory", "lines": ["allocator.start", "allocator.objective"]}
    assert named_axes({"rows": ["model"], "figure": figure}) == ["model", "task", *figure["lines"]]


def test_objectives_share_no_panel_and_no_table(tmp_path: Path) -> None:
    cells = [on(searched(objective=name), "allocator.objective", name) for name in ("nll", "kl")]
    figure = trajectory(plt, generations(cells, ["allocator.objective"]))
    plt.close(figure)
    assert [axis.get_ylabel() for axis in figure.axes] == [
        f"best fitness ({objective}, nats per token)" for objective in ("nll", "kl")
    ]
    with pytest.raises(UserError, match="measured by unlike protocols"):
        written(cells, tmp_path, metric="fitness")


def verifications() -> list[Cell]:
    return [
        verified(kind, sensitivity, seed, model)
        for model in ("tiny-7b", "tiny-13b")
        for kind in ("block", "matrix")
        for sensitivity in ("fisher", "hessian")
        for seed in (0, 1)
    ]


def test_a_scatter_is_written_with_its_numbers(tmp_path: Path) -> None:
    rows = ["model", "allocator.sensitivity", "allocator.units"]
    table, figure = written(verifications(), tmp_path, rows=rows, metric="spearman", figure="scatter")
    assert {path.name for path in tmp_path.glob("figure.*")} == {"figure.svg", "figure.png", "figure.csv"}
    assert list(figure.columns) == [
        *("model", "kind", "allocator.sensitivity", "seed"),
        *("unit", "block", "matrix", "measure", "sensitivity", "loss", "dense"),
    ]
    assert len(figure) == 16 * 12
    assert (table["task"].dropna() == "spearman").all()
    assert "0.993 ± 0.000" in (tmp_path / "table.md").read_text()


def test_panels_of_blocks_and_of_matrices() -> None:
    cells = [verified("block"), verified("matrix")]
    data = units(cells)
    assert correlation(data[data["kind"] == "block"]) == pytest.approx(
        cells[0].record.allocation["verification"]["spearman"]
    )
    blocks, matrices = panels(scatter(plt, data)).items()
    assert blocks[0] == "tiny-7b, blocks\nSpearman's ρ = 0.99"
    assert [text.get_text() for text in blocks[1].texts] == [str(i) for i in range(12)]
    assert blocks[1].get_xscale() == "log"
    assert blocks[1].get_legend_handles_labels()[1] == ["dense"]
    assert matrices[0] == "tiny-7b, matrices\nSpearman's ρ = 0.99"
    assert matrices[1].get_legend_handles_labels()[1] == ["q_proj", "o_proj", "up_proj", "down_proj", "dense"]
    assert matrices[1].get_xlabel() == "sensitivity (fisher)"


def test_no_two_kinds_of_matrices_look_alike() -> None:
    """A LLaMA and an OPT together have more kinds than there are colours, or markers."""
    kinds = [f"matrix_{number}" for number in range(20)]
    data = units([verified("matrix")]).iloc[[0]]
    data = pd.concat([data.assign(matrix=kind, unit=kind) for kind in kinds])
    (axis,) = panels(scatter(plt, data)).values()
    drawn = {line.get_label(): (line.get_color(), line.get_marker()) for line in axis.get_lines()}
    assert len({drawn[kind] for kind in kinds}) == 20


def test_an_estimated_trace_may_be_negative_and_a_loss_infinite() -> None:
    one = verified("block", "hessian")
    told = one.record.allocation["verification"]["units"]
    told[0]["sensitivity"], told[11]["loss"] = -3.0, None
    (axis,) = panels(scatter(plt, units([one]))).values()
    assert axis.get_xscale() == "symlog"
    assert "ρ = 0.99" in axis.get_title()


@pytest.mark.parametrize("kind", ["trajectory", "scatter"])
def test_without_anything_told_only_an_empty_table_of_numbers_is_written(kind: str, tmp_path: Path) -> None:
    table, figure = written([cell(5.0), cell(state="to do", seed=1)], tmp_path, figure=kind, rows=["model"])
    assert not (tmp_path / "figure.png").exists()
    assert figure.empty
    assert list(table["task"].dropna()) == ["wikitext2", "ptb"]


def test_a_point_that_did_not_search_is_not_measured(tmp_path: Path) -> None:
    table, _ = written(
        [searched(), cell(record={}, allocator="uniform")], tmp_path, metric="fitness", rows=["allocator"]
    )
    assert sorted(table["why"].dropna()) == ["no reported number", "not measured"]


def test_where_a_matrix_is() -> None:
    assert in_block("model.layers.12.mlp.up_proj") == (12, "up_proj")
    assert in_block("model.layers.1.experts.7.up_proj") == (1, "up_proj")
    assert in_block("lm_head") == (None, "lm_head")
