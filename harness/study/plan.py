"""How far a study is, point by point, from its files alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.config import RunConfig
from harness.core.pattern import misfit
from harness.prepare import revisions
from harness.record import schema
from harness.record.schema import Record
from harness.report.tidy import answered, question
from harness.study.grid import Point, Study

State = Literal["done", "stale", "skipped", "failed", "to do", "missing"]
"""`stale`: there is a record, by an earlier revision of a component; running the study again replaces it."""
Found = tuple[Path, Record]


@dataclass(frozen=True)
class Progress:
    """A point and what is known of it: its record, or why it has none."""

    point: Point
    state: State
    why: str = ""
    path: Path | None = None
    record: Record | None = None

    @property
    def to_run(self) -> bool:
        return self.state in ("stale", "failed", "to do")


def progress_of(study: Study, made: Mapping[int, Found] | None = None) -> list[Progress]:
    """The state of every point, from the records that answer it; needs neither checkpoint nor text.

    Args:
        made: records that are known to be a point's, by its number.
    """
    folders: dict[Path, dict[str, list[Found]]] = {}
    return [_progress(point, (made or {}).get(number), folders) for number, point in enumerate(study.points)]


def _progress(point: Point, made: Found | None, folders: dict[Path, dict[str, list[Found]]]) -> Progress:
    if point.cfg is None:
        return Progress(point, "missing", point.missing)
    found = [made] if made else find_answers(point.cfg, folders)
    if not found:
        return Progress(point, "to do", _foreseen_refusal(point))
    current = revisions(point.cfg)
    path, record = max(found, key=lambda item: (_is_current(item[1], current), *_rank(*item)))
    if record.status in schema.FINISHED and not _is_current(record, current):
        return Progress(point, "stale", "of an earlier revision", path, record)
    return Progress(point, "done" if record.status == "ok" else record.status, record.reason, path, record)


def find_answers(cfg: RunConfig, folders: dict[Path, dict[str, list[Found]]]) -> list[Found]:
    """The records of the run's folder that answer it; every folder is read once and kept in `folders`."""
    if cfg.records not in folders:
        answers: dict[str, list[Found]] = defaultdict(list)
        for path, record in schema.read_all(cfg.records):
            for key in answered(record):
                answers[key].append((path, record))
        folders[cfg.records] = answers
    return folders[cfg.records].get(question(cfg.composed), [])


def has_finished(cfg: RunConfig, since: float, folders: dict[Path, dict[str, list[Found]]]) -> bool:
    """Whether a point that ran elsewhere left a finished record of today's revision, after `since` if it was forced."""
    current = revisions(cfg)
    return any(
        record.status in schema.FINISHED
        and _is_current(record, current)
        and (not cfg.force or path.stat().st_mtime >= since)
        for path, record in find_answers(cfg, folders)
    )


def _is_current(record: Record, current: Mapping[str, object]) -> bool:
    return record.provenance.get("revisions") == current


def _rank(path: Path, record: Record) -> tuple[bool, float]:
    return record.status in schema.FINISHED, path.stat().st_mtime


def _foreseen_refusal(point: Point) -> str:
    """From the geometry alone: whether the pattern cannot fit, so that the point will be skipped."""
    assert point.cfg is not None
    geometry = point.cfg.composed["model"].get("geometry")
    if point.cfg.method is None or not geometry:
        return ""
    for width in (geometry["hidden"], geometry["intermediate"]):
        if why := misfit(point.cfg.pattern, (1, width)):
            return f"will be skipped: {why}"
    return ""
