"""Figures against an axis of numbers and against epochs: what is drawn where, with what scale and error bars."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import pytest

from harness.report.compare import compare
from harness.report.figures import draw
from harness.report.layout import level
from harness.report.lines import lines, losses
from harness.report.reported import load_dense, load_pairs, load_reported
from harness.report.style import Drawing, legend, save
from harness.report.tidy import Cell, tidy
from tests.report.test_further_axes import cell, grid

matplotlib.use("Agg")


def compared(cells: Sequence[Cell], layout: Mapping[str, Any]) -> pd.DataFrame:
    return compare(tidy("s", "proxy", cells, layout), load_reported(), load_pairs(), load_dense())


def drawn(cells: Sequence[Cell], metric: str = "perplexity", **axes: str) -> Any:
    """The panels of a figure of lines, or of losses, by their titles."""
    data = compared(cells, {"metric": metric})
    data = data[(data["metric"] == metric) & data["ours"].notna()]
    data = data.assign(level=[level(row) for row in data.itertuples()])
    figure = losses(plt, data) if metric == "loss" else lines(plt, data, metric, axes["x"], axes["by"])
    plt.close(figure)
    return {axis.get_title(): axis for axis in figure.axes}


def labels(axis: Any) -> list[str]:
    return axis.get_legend_handles_labels()[1]


def by_windows() -> list[Cell]:
    return [cell(5.0, method="none")] + [
        cell(base + windows / 8 + seed, method=method, calibration_windows=windows, seed=seed)
        for method, base in (("sparsegpt", 20), ("sparsellm", 10))
        for windows in (128, 8, 32)
        for seed in (0, 1)
    ]


def test_methods_against_the_number_of_windows() -> None:
    panels = drawn(by_windows(), x="calibration.windows", by="method")
    assert list(panels) == ["tiny-7b: wikitext2", "tiny-7b: ptb"]
    axis = panels["tiny-7b: wikitext2"]
    assert labels(axis) == ["dense", "sparsegpt", "sparsellm"]
    assert axis.get_xscale() == "log"
    assert axis.xaxis.get_transform().base == 2
    assert [text.get_text() for text in axis.get_xticklabels()] == ["8", "32", "128"]
    points, _, (bars,) = axis.containers[0]
    assert list(zip(*points.get_data(), strict=True)) == [(8, 21.5), (32, 24.5), (128, 36.5)]
    lower, upper = bars.get_segments()[0][:, 1]
    assert upper - lower == pytest.approx(2 * 0.5**0.5)  # the standard deviation of two seeds, up and down


def test_a_line_per_value_of_another_axis_and_references_across() -> None:
    axis = drawn(grid(), x="method.alpha", by="method.beta")["tiny-7b: wikitext2"]
    assert labels(axis) == ["dense", "sparsegpt", "beta 0.1", "beta 10"]
    found = dict(zip(labels(axis), axis.get_legend_handles_labels()[0], strict=True))
    assert list(found["beta 10"].get_xdata()) == [0.1, 5, 100]
    assert list(found["sparsegpt"].get_ydata()) == [20.0, 20.0]
    assert found["sparsegpt"].get_linestyle() == "--"
    assert axis.xaxis.get_transform().base == 10


def test_what_else_varies_is_a_line_of_its_own() -> None:
    cells = [
        cell(windows / sparsity, method="sparsellm", sparsity=sparsity, calibration_windows=windows)
        for sparsity in (0.7, 0.8)
        for windows in (10, 20, 30)
    ]
    axis = drawn(cells, x="calibration.windows", by="method")["tiny-7b: wikitext2"]
    assert labels(axis) == ["sparsellm, sparsity 0.7", "sparsellm, sparsity 0.8"]
    assert len({line.get_linestyle() for line in axis.get_lines()}) == 2
    assert axis.get_xscale() == "linear"


def test_a_study_narrowed_to_cells_without_the_lines_axis_has_one_line() -> None:
    cells = [cell(10.0 + windows, calibration_windows=windows) for windows in (1, 2)]
    axis = drawn(cells, x="calibration.windows", by="method.beta")["tiny-7b: ptb"]
    assert [list(line.get_xdata()) for line in axis.get_lines()] == [[1, 2]]
    assert labels(axis) == ["sparsegpt"]


def with_losses() -> list[Cell]:
    return [
        cell(
            record={"blocks": {"3": {"loss": [1.0, 0.5 * sparsity, None]}}},
            method="sparsellm",
            sparsity=sparsity,
            method_variant=variant,
        )
        for sparsity in (0.7, 0.8)
        for variant in ("default", "released")
    ]


def test_losses_against_epochs() -> None:
    (panel,) = drawn(with_losses(), metric="loss").items()
    title, axis = panel
    assert title == "tiny-7b: training loss of block 3"
    assert labels(axis) == [f"sparsity {zeros}, {name}" for zeros in (0.7, 0.8) for name in ("default", "released")]
    assert [list(line.get_data()[0]) for line in axis.get_lines()] == [[1, 2]] * 4  # the third is not finite


@pytest.mark.parametrize(
    ("figure", "cells", "rows"),
    [
        ({"kind": "lines", "x": "calibration.windows", "lines": "method"}, by_windows(), 14),
        ({"kind": "losses", "block": 3}, with_losses(), 8),
        ("bars", grid(), 16),
        ("curves", grid(), 16),
    ],
)
def test_every_kind_is_written_with_its_numbers(figure: Any, cells: list[Cell], rows: int, tmp_path: Path) -> None:
    layout = {"rows": ["method"], "figure": figure}
    draw(compared(cells, layout), layout, "A title", "proxy", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"figure.svg", "figure.png", "figure.csv"}
    assert len(pd.read_csv(tmp_path / "figure.csv")) == rows


@pytest.mark.parametrize("cells", [[cell(5.0, method="none")], [cell(5.0)], [cell(5.0), cell(5.0, method_alpha="a")]])
def test_without_a_cell_on_the_axis_there_is_no_picture(cells: list[Cell], tmp_path: Path) -> None:
    layout = {"rows": ["method"], "figure": {"kind": "lines", "x": "method.alpha", "lines": "method"}}
    draw(compared(cells, layout), layout, "A title", "proxy", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["figure.csv"]


def test_a_figure_grows_until_its_legend_leaves_room(tmp_path: Path) -> None:
    """Where matplotlib would warn that it laid out nothing; axes do not overlap afterwards."""
    plt = Drawing()
    figure, axes = plt.subplots(6, 1, figsize=(4, 3), squeeze=False, layout="constrained")
    for number in range(60):
        axes[0][0].plot([0, 1], [0, number], label=f"a method with a long name, setting {number}")
    legend(figure, axes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(figure, "tall", tmp_path, "figure")
    boxes = [axis.get_position() for axis in axes.flat]
    assert figure.get_figheight() > 3 and min(box.height for box in boxes) > 0
    assert all(above.y0 >= below.y1 for above, below in itertools.pairwise(boxes))
