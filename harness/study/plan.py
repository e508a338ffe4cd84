"""How far a study is, point by point, from its files alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.config import RunConfig
from harness.core.pattern import misfit
from harness.prepare import revisions
from harness.record import schema
from harness.record.lease import Lease, read_all
from harness.record.request import RequestIndex, matcher_of_record
from harness.record.schema import Record
from harness.study.grid import Point, Study

State = Literal["done", "stale", "skipped", "running", "queued", "failed", "lost", "to do", "missing"]
"""`stale`: there is a record, by an earlier revision of a component; running the study again replaces it. `running`: a
process that lives has claimed the point; `queued`: it was submitted by one that still waits for its jobs; `lost`: its
process ended without a record, or it was submitted and never ended."""
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
        """True if it has no result and nobody is at it."""
        return self.state in ("stale", "failed", "lost", "to do")

    @property
    def has_ended(self) -> bool:
        """True if nothing is left to be done or waited for."""
        return self.state in ("done", "skipped", "missing")


class Files:
    """Records and leases by the questions that they answer; every file is read once."""

    def __init__(self) -> None:
        self._records: dict[Path, RequestIndex[Found]] = {}
        self._leases: dict[Path, RequestIndex[tuple[Lease, State]]] = {}

    def records(self, cfg: RunConfig) -> list[Found]:
        """The records of the run's folder that answer it."""
        if cfg.records not in self._records:
            self._records[cfg.records] = index = RequestIndex[Found]()
            for path, record in schema.read_all(cfg.records):
                index.add(matcher_of_record(record), (path, record))
        return self._records[cfg.records].find(cfg.composed)

    def leases(self, cfg: RunConfig) -> list[tuple[Lease, State]]:
        """The claims on the run, the most telling one first: running, queued, lost."""
        if cfg.records not in self._leases:
            self._leases[cfg.records] = index = RequestIndex[tuple[Lease, State]]()
            for lease in sorted(read_all(cfg.records), key=lambda lease: lease.is_submission):
                state: State = "lost" if lease.is_lost() else "queued" if lease.is_submission else "running"
                for matcher in lease.matchers:
                    index.add(matcher, (lease, state))
        return sorted(self._leases[cfg.records].find(cfg.composed), key=lambda found: found[1] == "lost")


def progress_of(study: Study, made: Mapping[int, Found] | None = None) -> list[Progress]:
    """The state of every point, from the records and leases that answer it; needs neither checkpoint nor text.

    Args:
        made: records that are known to be a point's, by its number.
    """
    files = Files()
    return [_progress(point, (made or {}).get(number), files) for number, point in enumerate(study.points)]


def _progress(point: Point, made: Found | None, files: Files) -> Progress:
    if point.cfg is None:
        return Progress(point, "missing", point.missing)
    found = [made] if made else files.records(point.cfg)
    current = revisions(point.cfg) if found else {}
    path, record = max(found, key=lambda item: _rank(item, current, len(found)), default=(None, None))
    if record and record.status in schema.FINISHED and _is_current(record, current):
        return Progress(point, "done" if record.status == "ok" else record.status, record.reason, path, record)
    leases = files.leases(point.cfg)
    if leases and leases[0][1] != "lost":
        return Progress(point, leases[0][1], str(leases[0][0]))
    if record and record.status in schema.FINISHED:
        return Progress(point, "stale", "of an earlier revision", path, record)
    for lease, _ in leases:
        if not record or not lease.is_submission:
            verb = "submitted by" if lease.is_submission else "claimed by"
            return Progress(point, "lost", f"{verb} {lease}, and never ended")
    if record:
        return Progress(point, "failed", record.reason, path, record)
    return Progress(point, "to do", _foreseen_refusal(point))


def attempts(points: Iterable[RunConfig]) -> dict[Path, int]:
    """The attempts of the records that answer these points."""
    files = Files()
    return {path: record.attempt for cfg in points for path, record in files.records(cfg)}


def has_finished(cfg: RunConfig, before: Mapping[Path, int], files: Files) -> bool:
    """Return whether a point that ran elsewhere left a finished record of today's revision.

    Args:
        before: the attempts of the records that were there before; one that was forced counts if it is a later one.
    """
    current = revisions(cfg)
    return any(
        record.status in schema.FINISHED
        and _is_current(record, current)
        and (not cfg.force or record.attempt > before.get(path, 0))
        for path, record in files.records(cfg)
    )


def _is_current(record: Record, current: Mapping[str, object]) -> bool:
    return record.provenance.get("revisions") == current


def _rank(found: Found, current: Mapping[str, object], of: int) -> tuple[bool, bool, float]:
    """A record of today's revision before another, a finished one before a failed one, a younger file before others."""
    path, record = found
    return _is_current(record, current), record.status in schema.FINISHED, path.stat().st_mtime if of > 1 else 0.0


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
