"""Telling others of a finished run. The record on disk stays the truth: a lost connection loses nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from harness.core.errors import UserError
from harness.record.schema import Record


class TrackerSettings(Protocol):
    """What a tracker needs to know; `harness.config.Tracker` is one."""

    @property
    def name(self) -> str: ...
    @property
    def project(self) -> str: ...
    @property
    def group(self) -> str | None: ...


@dataclass(frozen=True)
class Report:
    """The tables and figures of a study, for the one `report` run of a project."""

    study: str
    scale: str
    tables: Mapping[str, Any]
    figures: Iterable[Path]


def check_tracker(tracker: TrackerSettings) -> None:
    """Find out before the work starts whether the tracker can be reached at all.

    Raises:
        UserError: wandb is not installed, or W&B is asked for online and nobody is logged in.
    """
    if tracker.name == "csv":
        return
    try:
        import wandb  # noqa: F401
    except ImportError:
        raise UserError(f"tracker={tracker.name} needs the package wandb: pip install wandb.") from None
    if tracker.name != "wandb":
        return
    if not (os.environ.get("WANDB_API_KEY") or _logged_in()):
        raise UserError(
            "tracker=wandb needs a login: run wandb login, set WANDB_API_KEY, or take tracker=wandb-offline."
        )


def _logged_in() -> bool:
    import wandb

    try:
        return bool(wandb.login(prompt=False))
    except Exception:  # credentials are there and the server is not: that loses no run
        return True


def track(tracker: TrackerSettings, record: Record, folder: Path) -> None:
    """Hand a record to the tracker; what goes wrong there is said and not raised."""
    if tracker.name == "csv":
        return
    identifier = f"{record.name}-{record.attempt}"
    try:
        with _session(tracker, folder, identifier, record.name, _config_of(record), "run") as session:
            session.summary.update(values_of(record))
            if record.status == "failed":
                session.finish(exit_code=1)
    except Exception as error:
        print(f"tracker {tracker.name}: {type(error).__name__}: {error}; the record is safe", file=sys.stderr)


def track_report(tracker: TrackerSettings, report: Report, folder: Path) -> None:
    """Log the tables and figures of a study into one run of job type `report`."""
    if tracker.name == "csv":
        return
    import wandb

    name = f"report-{report.study}-{report.scale}"
    try:
        with _session(tracker, folder, name, name, {"study": report.study, "scale": report.scale}, "report") as session:
            for key, frame in report.tables.items():
                session.log({key: wandb.Table(columns=list(frame.columns), data=frame.astype(str).values.tolist())})
            for figure in report.figures:
                session.log({figure.stem: wandb.Image(str(figure))})
    except Exception as error:
        print(f"tracker {tracker.name}: {type(error).__name__}: {error}; the tables are safe", file=sys.stderr)


def values_of(record: Record) -> dict[str, Any]:
    """The numbers of a record under flat names, the same that its table shows."""
    values: dict[str, Any] = {"status": record.status, "reason": record.reason}
    values |= {f"sparsity/{key}": value for key, value in record.sparsity.items()}
    values |= {f"{m['task']}/{m['metric']}": m["value"] for m in record.measures}
    values |= {f"{m['task']}/{m['metric']}_stderr": m["stderr"] for m in record.measures if m["stderr"] is not None}
    values |= {f"seconds/{name}": stage["seconds"] for name, stage in record.stages.items()}
    return values


def _config_of(record: Record) -> dict[str, Any]:
    return {**record.config, "fingerprint": record.fingerprint}


def _session(
    tracker: TrackerSettings, folder: Path, identifier: str, name: str, config: Mapping[str, Any], job: str
) -> Any:
    """A W&B run with the harness's own name; the id is the name and the attempt, so that a retry is told apart."""
    import wandb

    offline = tracker.name == "wandb-offline"
    folder.mkdir(parents=True, exist_ok=True)
    return wandb.init(
        project=tracker.project,
        group=tracker.group,
        job_type=job,
        name=name,
        id=identifier,
        config=dict(config),
        mode="offline" if offline else "online",
        resume=None if offline else "allow",
        dir=str(folder),
        settings=wandb.Settings(silent=True, init_timeout=60),
    )
