"""How far a study is, point by point, from its files alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.core.errors import UserError
from harness.core.pattern import misfit
from harness.prepare import Prepared, prepare
from harness.record import schema
from harness.record.schema import Record
from harness.report.tidy import config_key
from harness.study.grid import Point, Study

State = Literal["done", "skipped", "failed", "to do", "missing"]


@dataclass(frozen=True)
class Progress:
    """A point and what is known of it: its record, or why it has none."""

    point: Point
    state: State
    why: str = ""
    path: Path | None = None
    record: Record | None = None


def progress_of(study: Study) -> list[Progress]:
    """The state of every point; needs neither checkpoint nor text."""
    found: dict[Path, dict[str, tuple[Path, Record]]] = {}
    return [_progress(point, found) for point in study.points]


def _progress(point: Point, found: dict[Path, dict[str, tuple[Path, Record]]]) -> Progress:
    if point.cfg is None:
        return Progress(point, "missing", point.missing)
    folder = point.cfg.records
    if folder not in found:
        found[folder] = records_by_key(folder)
    if item := found[folder].get(config_key(point.cfg.resolved)):
        path, record = item
        state: State = "done" if record.status == "ok" else record.status
        return Progress(point, state, record.reason, path, record)
    return Progress(point, "to do", _foreseen_refusal(point))


def records_by_key(folder: Path) -> dict[str, tuple[Path, Record]]:
    """Every record of a folder by what was asked of it; of several, a finished one, then the newest."""
    best: dict[str, tuple[Path, Record]] = {}
    for path, record in schema.read_all(folder):
        key = config_key(record.config)
        if key not in best or _rank(path, record) > _rank(*best[key]):
            best[key] = (path, record)
    return best


def _rank(path: Path, record: Record) -> tuple[bool, float]:
    return record.status in schema.FINISHED, path.stat().st_mtime


def _foreseen_refusal(point: Point) -> str:
    """From the geometry alone: whether the pattern cannot fit, so that the point will be skipped."""
    assert point.cfg is not None
    geometry = point.cfg.resolved["model"].get("geometry")
    if point.cfg.method is None or not geometry:
        return ""
    for width in (geometry["hidden"], geometry["intermediate"]):
        if why := misfit(point.cfg.pattern, (1, width)):
            return f"will be skipped: {why}"
    return ""


def prepared(points: Sequence[Point]) -> Iterator[tuple[Point, Prepared | UserError]]:
    """Every point with a run, prepared, or the mistake that keeps it from running."""
    for point in points:
        if point.cfg is not None:
            try:
                yield point, prepare(point.cfg)
            except UserError as error:
                yield point, error
