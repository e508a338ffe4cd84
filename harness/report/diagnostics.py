"""Allocators' diagnostics, as tidy tables: a row per generation of a search, a row per unit of a verification."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from harness.report.layout import column_of, level, varying
from harness.report.style import label
from harness.report.tidy import Cell, beyond, place

GENERATION = ("generation", "evaluations", "best", "mean")
UNIT = ("unit", "block", "matrix", "measure", "sensitivity", "loss", "dense")


def generations(cells: Sequence[Cell], by: Sequence[str]) -> pd.DataFrame:
    """The generations of every search.

    Returns:
        The columns model, sparsity, objective; those axes that make a `line`: `by`, and whatever else tells searches
        apart; line, seed and those of `GENERATION`.
    """
    head, tail = ["model", "sparsity", "objective"], ["line", "seed", *GENERATION]
    by = [column_of(axis) for axis in by if axis not in (*head, "seed")]  # those are panels and thin lines
    frame = pd.DataFrame(
        [
            {**generation, **here, "objective": told["search"]["objective"]}
            for here, told in _told(cells, "search", by)
            for generation in told["search"]["generations"]
        ]
    )
    if frame.empty:
        return pd.DataFrame(columns=[*head, *by, *tail])
    several = ["method"] if frame["method"].nunique() > 1 else []
    known = [axis for axis in by if (frame[axis] != "").any()] or ["allocator"]
    axes = list(dict.fromkeys([*known, *several, *_apart(frame, cells, but=(*by, "level"))]))
    names = [label(dict(zip(axes, row, strict=True))) for row in frame[axes].itertuples(index=False)]
    frame = frame.assign(sparsity=frame["level"], line=names)
    return frame[[*head, *axes, *tail]].astype({"best": float, "mean": float})


def units(cells: Sequence[Cell]) -> pd.DataFrame:
    """The units that were pruned one at a time.

    Returns:
        The columns model, kind (block or matrix); those axes that tell verifications apart; seed and those of `UNIT`,
        of which `measure` is the kind of sensitivity, `matrix` what a matrix is called within its block.
    """
    frame = pd.DataFrame(
        [
            {**unit, **here, **_unit(unit), "measure": _measure(told), "dense": told["verification"]["dense"]}
            for here, told in _told(cells, "verification")
            for unit in told["verification"]["units"]
        ]
    )
    if frame.empty:
        return pd.DataFrame(columns=["model", "kind", "seed", *UNIT])
    several = ["method"] if frame["method"].nunique() > 1 else []
    axes = [*several, *_apart(frame.assign(model=frame["model"] + frame["kind"]), cells)]
    return frame[["model", "kind", *axes, "seed", *UNIT]].astype({"sensitivity": float, "loss": float})


def in_block(site: str) -> tuple[int | None, str]:
    """The block of a matrix and its name there: `model.layers.3.mlp.up_proj` → 3, `up_proj`."""
    block = re.search(r"\.(\d+)\.", site)
    return int(block[1]) if block else None, site.rpartition(".")[2]


def _told(
    cells: Sequence[Cell], part: str, also: Sequence[str] = ()
) -> Iterator[tuple[dict[str, Any], Mapping[str, Any]]]:
    """The place of every cell whose allocator told this part, and all that it told."""
    axes = [*beyond(cells), *also]
    for cell in cells:
        if cell.record and cell.record.allocation.get(part):
            here = place(cell, axes)
            yield here | {"level": level(pd.Series(here))}, cell.record.allocation


def _measure(told: Mapping[str, Any]) -> str:
    return str(told.get("sensitivity", {}).get("kind", ""))


def _unit(unit: Mapping[str, Any]) -> dict[str, Any]:
    block, matrix = (int(unit["unit"]), "") if unit["unit"].isdigit() else in_block(unit["unit"])
    return {"block": block, "matrix": matrix}


def _apart(frame: pd.DataFrame, cells: Sequence[Cell], but: Sequence[str] = ()) -> list[str]:
    """The axes besides `but` on which a model pruned by one method has several values."""
    axes = dict.fromkeys(["variant", "allocator", "scope", "level", *map(column_of, beyond(cells))])
    return varying(frame, [axis for axis in axes if axis not in but])
