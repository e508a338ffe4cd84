"""Points as jobs: which points one process runs, what it is told, what it leaves behind.

A job is one JSON file with the composed configuration of every point of its, written at submission and never again,
so that edits of `conf/` do not reach a queued job. The code of components is not frozen: every record says the commit
it was made by, and a job that starts at another commit than the submitted one says so.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from harness import compose
from harness.config import RunConfig
from harness.execute import execute, taken_last
from harness.prepare import Run, prepare
from harness.record import schema
from harness.record.lease import Watch
from harness.record.provenance import commit
from harness.record.schema import Record
from harness.runtime import streams
from harness.runtime.files import write_atomically


@dataclass(frozen=True)
class Ended:
    """How far a job came: the points that ended, as they did, and for each the record or why there is none."""

    points: Sequence[str]
    ended: Sequence[Mapping[str, str]]

    @property
    def records(self) -> list[str]:
        return [item["record"] for item in self.ended if "record" in item]

    @property
    def errors(self) -> list[str]:
        return [f"at the point {item['point']}: {item['error']}" for item in self.ended if "error" in item]

    @property
    def lost(self) -> Sequence[str]:
        """The points that the job did not come to or was at when it was stopped."""
        over = {item["point"] for item in self.ended}
        return [label for label in self.points if label not in over]


def grouped(configs: Mapping[int, RunConfig], costs: Mapping[int, float], count: int | None) -> list[list[int]]:
    """Points, by number, as at most so many jobs whose longest is as short as it can be, those of a model about equal.

    Points of one job share model, dtype and calibration, so there is at least one job for each of these. They are in
    the order in which one can use what another left: the dense one first, then by calibration seed, allocator, method,
    and ascending sparsity; jobs are cut from this order.

    Args:
        costs: of every point, above 0.
        count: how many jobs; `None` for one a point.
    """
    shared: dict[str, list[int]] = {}
    for number, cfg in configs.items():
        shared.setdefault(_shared(cfg), []).append(number)
    ordered = [sorted(numbers, key=lambda number: _place(configs[number])) for numbers in shared.values()]
    if count is None:
        return [[number] for numbers in ordered for number in numbers]
    limit = _shortest(ordered, costs, count)
    parts = [len(_cut(numbers, costs, limit)) for numbers in ordered]
    own = [_shortest([numbers], costs, into) for numbers, into in zip(ordered, parts, strict=True)]
    return [job for numbers, most in zip(ordered, own, strict=True) for job in _cut(numbers, costs, most)]


def _shortest(sequences: Sequence[Sequence[int]], costs: Mapping[int, float], count: int) -> float:
    """The least limit under which all sequences together are cut into at most so many jobs, or one each."""
    low = max(costs[number] for numbers in sequences for number in numbers)
    high = max(sum(costs[number] for number in numbers) for numbers in sequences)
    for _ in range(50):
        middle = (low + high) / 2
        if sum(len(_cut(numbers, costs, middle)) for numbers in sequences) <= count:
            high = middle
        else:
            low = middle
    return high


def _cut(numbers: Sequence[int], costs: Mapping[int, float], limit: float) -> list[list[int]]:
    """Cut a sequence into runs that cost at most the limit, or are one point."""
    jobs: list[list[int]] = []
    spent = limit
    for number in numbers:
        if not jobs or spent + costs[number] > limit:
            jobs.append([])
            spent = 0.0
        jobs[-1].append(number)
        spent += costs[number]
    return jobs


def _shared(cfg: RunConfig) -> str:
    """Settings that points of one job share."""
    return json.dumps([cfg.composed[key] for key in ("model", "dtype", "calibration")], sort_keys=True)


def _place(cfg: RunConfig) -> tuple[Any, ...]:
    """Where a point stands in its job."""
    parts = [cfg.composed[key] for key in ("allocator", "method")]
    names = [(part["name"], json.dumps(part, sort_keys=True)) for part in parts]
    return cfg.method is not None, cfg.calibration.seed, *names, cfg.scope.text, cfg.asked


def freeze(folder: Path, jobs: Sequence[Sequence[tuple[str, RunConfig]]]) -> None:
    """Write every job, a list of points with their labels, as `<number>.json`."""
    told = {"commit": commit()["commit"], "folder": str(Path.cwd()), "assets": os.environ.get("HARNESS_ASSETS")}
    for number, points in enumerate(jobs):
        content = told | {"points": [{"point": label, "config": cfg.composed} for label, cfg in points]}
        write_atomically(folder / f"{number}.json", json.dumps(content))


def run_job(folder: Path, number: int) -> list[str]:
    """Run the points of a job one after the other, each from its frozen configuration to its record.

    A point that fails does not stop the others, and one that another process is at comes last. What has ended is
    written down after each.

    Returns:
        The paths of the records.
    """
    streams.secure()
    job = folder / f"{number}.json"
    content = json.loads(job.read_text(encoding="utf-8"))
    os.chdir(content["folder"])  # relative paths mean what they meant at submission
    if content["assets"]:
        os.environ["HARNESS_ASSETS"] = content["assets"]
    if content["commit"] != commit()["commit"]:
        print(f"submitted at commit {content['commit']}, runs at {commit()['commit']}", file=sys.stderr, flush=True)
    points = content["points"]

    @cache  # one that another process is at is looked at again and again
    def ready(at: int) -> Run:
        return prepare(compose.typed_here(points[at]["config"]))

    def attempt(at: int, watch: Watch) -> tuple[Path, Record]:
        return _run_point(ready(at), job.stat().st_mtime, watch)

    ended: list[dict[str, str]] = []
    for at, done in taken_last(range(len(points)), attempt):
        label = points[at]["point"]
        ended.append({"point": label} | ({"error": done} if isinstance(done, str) else {"record": str(done[0])}))
        if not isinstance(done, str):
            print(f"[{len(ended)}/{len(points)}] {label}: {done[1].status}", flush=True)
        write_atomically(_outcome(folder, number), json.dumps(ended))
    return Ended([], ended).records


def _run_point(run: Run, since: float, watch: Watch) -> tuple[Path, Record]:
    found = schema.find(run.cfg.records, run.fingerprint)
    if run.cfg.force and found and found[1].status in schema.FINISHED and found[0].stat().st_mtime >= since:
        return found  # the job was stopped and queued again: what it forced once is done
    done = execute(run, in_sweep=True, watch=watch)
    return done.path, done.record


def ended(folder: Path, number: int) -> Ended:
    """How far a job came, from its files."""
    points = [point["point"] for point in json.loads((folder / f"{number}.json").read_text(encoding="utf-8"))["points"]]
    outcome = _outcome(folder, number)
    return Ended(points, json.loads(outcome.read_text(encoding="utf-8")) if outcome.exists() else [])


def _outcome(folder: Path, number: int) -> Path:
    return folder / f"{number}.ended.json"
