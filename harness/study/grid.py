"""A study: one YAML file of `conf/study`, its points at one scale.

A study file has a title, `grids` (each a product of axes) and `scales` (what is fixed, and which models, at each
scale). A scale's `axes` are multiplied into every grid; its `fixed` overrides hold for every point.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from harness.compose import COMPONENT_GROUPS, CONF, SCALES, Choices, choices
from harness.config import RunConfig
from harness.core.errors import UserError, unknown

AXIS_ORDER = ("model", "scope", "sparsity", "method", "allocator", "seed")


@dataclass(frozen=True)
class Point:
    """One cell of the grid: what distinguishes it, its typed configuration, or why it has none."""

    axes: Mapping[str, Any]
    cfg: RunConfig | None
    missing: str = ""

    def __str__(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.axes.items())


@dataclass(frozen=True)
class Study:
    """A study at one scale, with the user's further overrides in `extra`."""

    name: str
    scale: str
    content: Mapping[str, Any]
    extra: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return str(self.content["title"])

    @property
    def table(self) -> Mapping[str, Any]:
        """How the table and the figure are laid out."""
        return dict(self.content.get("table") or {})

    @property
    def tasks(self) -> tuple[str, ...]:
        """The texts and tasks by which every point is measured."""
        return next((tuple(point.cfg.evaluators) for point in self.points if point.cfg), ())

    @property
    def reproduces(self) -> Mapping[str, Any]:
        """The paper, and which of its tables, whose numbers the study is to meet at paper scale."""
        return dict(self.content.get("reproduces") or {})

    @cached_property
    def points(self) -> tuple[Point, ...]:
        """All points, in the order of the table; a method that does not exist (yet) gives a point without a run."""
        here = self.content["scales"][self.scale]
        fixed = [f"{key}={value}" for key, value in (here.get("fixed") or {}).items()]
        made = Choices([*fixed, f"scale={self.scale}", *self.extra])
        return tuple(_point(made, axes, self.name) for axes in self._axes(here.get("axes") or {}))

    def _axes(self, scale_axes: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
        seen = set()
        for grid in self.content["grids"]:
            axes = {**scale_axes, **grid}
            keys = sorted(axes, key=lambda key: AXIS_ORDER.index(key) if key in AXIS_ORDER else len(AXIS_ORDER))
            for values in itertools.product(*(axes[key] for key in keys)):
                point = dict(zip(keys, values, strict=True))
                if str(point) not in seen:
                    seen.add(str(point))
                    yield point


def _point(made: Choices, axes: dict[str, Any], study: str) -> Point:
    for group in COMPONENT_GROUPS:
        if group in axes and axes[group] not in choices(group):
            return Point(axes, None, f"the {group} {axes[group]} is not here yet")
    return Point(axes, made.point({**axes, "study": study}))


def study_names() -> list[str]:
    """The studies there are."""
    return sorted(path.stem for path in (CONF / "study").glob("*.yaml"))


def load_study(name: str, scale: str, extra: Sequence[str] = ()) -> Study:
    """A study by name and scale.

    Raises:
        UserError: no such study, no such scale, or the study has no points at that scale.
    """
    if name not in study_names():
        raise unknown("study", name, study_names())
    content = yaml.safe_load((CONF / "study" / f"{name}.yaml").read_text())
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    if scale not in content["scales"]:
        raise UserError(f"study {name} is not defined at scale {scale}; it has {', '.join(content['scales'])}.")
    return Study(name, scale, content, tuple(extra))


def output_folder(study: Study, records: Path) -> Path:
    """Where the tables and figures of a study go: beside the records they are made from."""
    return records.parent / "tables" / study.name / study.scale
