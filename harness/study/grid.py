"""A study: one YAML file of `conf/study`, its points at one scale.

A study file has a title, a `table` (see `harness/report/layout.py`), `grids` (each a product of axes) and `scales`
(what is fixed, and which models, at each scale). An axis is any option, settings of components included
(`method.alpha`). A scale's `axes` are multiplied into every grid that has no such axis; its `fixed` overrides hold for
every point; its own `grids` stand in for those of the study.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from harness.config import RunConfig
from harness.groups import COMPONENT_GROUPS, CONF, GROUPS, SCALES, choices
from harness.report.layout import KINDS, figure_of, named_axes
from harness.runtime.errors import UserError, unknown
from harness.study.choices import Choices

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
    """A study at one scale, with the user's further overrides in `extra`, and where its points run.

    `launcher` holds the overrides that say how they are launched (`hydra.launcher.…`, `cluster.jobs`).
    """

    name: str
    scale: str
    content: Mapping[str, Any]
    extra: tuple[str, ...] = ()
    cluster: str = "local"
    launcher: tuple[str, ...] = ()

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
    def records(self) -> Path:
        """The folder of the records, whether or not any point can run."""
        given = [text.partition("=")[2] for text in self.extra if text.startswith("records=")]
        return next((point.cfg.records for point in self.points if point.cfg), Path((given or ["results/records"])[-1]))

    @property
    def reproduces(self) -> Mapping[str, Any]:
        """The paper, and which of its tables, whose numbers the whole study is to meet at paper scale."""
        return {} if self._narrowed() else dict(self.content.get("reproduces") or {})

    @cached_property
    def points(self) -> tuple[Point, ...]:
        """All points, in the order of the table; a method that does not exist (yet) gives a point without a run."""
        here = self.content["scales"][self.scale]
        fixed = [f"{key}={value}" for key, value in (here.get("fixed") or {}).items()]
        narrowed = self._narrowed()
        extra = [text for text in self.extra if text.partition("=")[0] not in narrowed]
        # a choice that is left alone may have settings of its own among the overrides
        fixed += [f"{key}={one[0]}" for key, one in narrowed.items() if len(one) == 1 and one[0] in _existing(key)]
        # and so may one of several, which then all need them
        axes = {key for grid in self._grids for key in grid} - _chosen(fixed)
        own = [text for text in extra if _is_setting_of(text, axes)]
        made = Choices([*fixed, f"scale={self.scale}", *(text for text in extra if text not in own)], own)
        known = {group: set(choices(group)) for group in COMPONENT_GROUPS}
        return tuple(
            _point(made, axes, self.name, known)
            for axes in self._axes()
            if all(_value(axes[key]) in values for key, values in narrowed.items() if key in axes)
        )

    def check_narrowing(self) -> None:
        """An override of an axis of the study keeps only those of its values (`method=none,wanda`).

        Raises:
            UserError: a value that the axis does not have.
        """
        for key, values in self._narrowed().items():
            known = self._values(key)
            for value in values:
                if value not in known:
                    raise unknown(f"{key} of study {self.name}:", value, known)

    def check_layout(self) -> None:
        """The table and the figure name axes of the study.

        Raises:
            UserError: an axis that no grid has, rows or axes that are left out, an unknown kind of figure, or a
                ranking that does not fit.
        """
        figure = figure_of(self.table)
        if figure["kind"] not in KINDS:
            raise unknown(f"figure of study {self.name}:", figure["kind"], KINDS)
        if not self.table.get("rows") or (figure["kind"] == "lines" and not {"x", "lines"} <= set(figure)):
            raise UserError(f"study {self.name}: a table needs rows, and a figure of lines needs x and lines.")
        ranking = self.table.get("ranking")
        if ranking and not (ranking.get("of") and set(ranking.get("over") or ()) - {"seed"}):
            raise UserError(
                f"study {self.name}: a ranking needs `of`, the axis that is ranked, and `over`, a cell's axes."
            )
        grids = list(self.content["grids"])
        for here in self.content["scales"].values():
            grids += [here.get("axes") or {}, *(here.get("grids") or ())]
        known = [*AXIS_ORDER, "variant", "task", *(key for grid in grids for key in grid)]
        for axis in named_axes(self.table):
            if axis not in known:
                raise unknown(f"axis in the table of study {self.name}:", axis, dict.fromkeys(known))
        self._check_ranking()

    def _check_ranking(self) -> None:
        """Every axis with several values makes a cell or is what is ranked, and who is named takes part.

        Raises:
            UserError: an axis is forgotten, or a value is not one of the axis.
        """
        if not (ranking := self.table.get("ranking")):
            return
        axes = dict.fromkeys(key for grid in self._grids for key in grid if len(self._values(key)) > 1)
        if forgotten := [axis for axis in axes if axis not in (ranking["of"], *ranking["over"], "seed")]:
            raise UserError(f"study {self.name}: {forgotten[0]} has several values; add it to the ranking's `over`.")
        known = self._values(ranking["of"])
        for value in [*ranking.get("among", ()), *([ranking["against"]] if "against" in ranking else ())]:
            if _value(value) not in known:
                raise unknown(f"{ranking['of']} in the ranking of study {self.name}:", _value(value), known)

    @property
    def _grids(self) -> list[dict[str, Any]]:
        """The grids at this scale, with the axes of the scale in each."""
        here = self.content["scales"][self.scale]
        return [{**(here.get("axes") or {}), **grid} for grid in here.get("grids") or self.content["grids"]]

    def _narrowed(self) -> dict[str, list[str]]:
        """Axis → the values that the user's overrides leave of it."""
        given = {key: value for key, _, value in (text.partition("=") for text in self.extra)}
        return {
            key: [_value(item.strip(" '\"")) for item in value.strip("[]").split(",")]
            for key, value in given.items()
            if self._values(key)
        }

    def _values(self, key: str) -> list[str]:
        return list(dict.fromkeys(_value(value) for grid in self._grids for value in grid.get(key, ())))

    def _axes(self) -> Iterator[dict[str, Any]]:
        seen = set()
        for grid in self._grids:
            keys = sorted(grid, key=_place)
            for values in itertools.product(*(grid[key] for key in keys)):
                point = dict(zip(keys, values, strict=True))
                if str(point) not in seen:
                    seen.add(str(point))
                    yield point


def _place(axis: str) -> tuple[int, bool]:
    """Where an axis stands among the others: a choice (`calibration`) before its settings (`calibration.windows`)."""
    return AXIS_ORDER.index(axis) if axis in AXIS_ORDER else len(AXIS_ORDER), "." in axis


def _value(value: Any) -> str:
    """A value of an axis as text, equal for equal numbers (`.5`, `0.50`), as a user writes it (`null`, `true`)."""
    if value is None or isinstance(value, bool | Mapping):
        return json.dumps(value)
    try:
        return f"{float(value):g}"
    except ValueError:
        return str(value)


def _chosen(fixed: Iterable[str]) -> set[str]:
    """The groups whose choice these overrides fix."""
    return {text.partition("=")[0] for text in fixed}


def _is_setting_of(override: str, axes: Iterable[str]) -> bool:
    """Return whether an override sets something in a component that one of the axes chooses."""
    key = override.lstrip("+").partition("=")[0]
    return key.startswith(COMPONENT_GROUPS) and any(key.startswith(f"{axis}.") for axis in axes)


def _existing(key: str) -> list[str]:
    """The choices of a group; none for an option that is no group."""
    return choices(key) if key in GROUPS else []


def _point(made: Choices, axes: dict[str, Any], study: str, known: Mapping[str, set[str]]) -> Point:
    for group in COMPONENT_GROUPS:
        if group in axes and axes[group] not in known[group]:
            return Point(axes, None, f"the {group} {axes[group]} is not here yet")
    return Point(axes, made.point({**axes, "study": study}))


def study_names() -> list[str]:
    """The studies there are."""
    return sorted(path.stem for path in (CONF / "study").glob("*.yaml"))


def load_study(
    name: str, scale: str, extra: Sequence[str] = (), cluster: str = "local", launcher: Sequence[str] = ()
) -> Study:
    """A study by name and scale.

    Raises:
        UserError: no such study, no such scale, or the study has no points at that scale.
    """
    if name not in study_names():
        raise unknown("study", name, study_names())
    content = yaml.safe_load((CONF / "study" / f"{name}.yaml").read_text(encoding="utf-8"))
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    if scale not in content["scales"]:
        raise UserError(f"study {name} is not defined at scale {scale}; it has {', '.join(content['scales'])}.")
    study = Study(name, scale, content, tuple(extra), cluster, tuple(launcher))
    study.check_layout()
    study.check_narrowing()
    if not study.points:
        raise UserError(f"study {name} has no point with {', '.join(extra)}.")
    return study


def output_folder(study: Study) -> Path:
    """Where the tables and figures of a study go: beside the records they are made from."""
    return study.records.parent / "tables" / study.name / study.scale
