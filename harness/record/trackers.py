"""Telling others of a finished run. The record on disk stays the truth: a lost connection loses nothing."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from harness.record.schema import Record
from harness.runtime import escape
from harness.runtime.errors import UserError

WAIT = 30.0
"""Seconds that W&B's host has for opening a run, and again for taking what it is told."""
_out_of_reach: set[str] = set()
"""The trackers whose host has let this process wait once; it is not asked again."""


class TrackerSettings(Protocol):
    """Settings of a tracker; `harness.config.Tracker` has them."""

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


def check_tracker(tracker: TrackerSettings, folder: Path) -> None:
    """Find out before the work starts whether the tracker can be reached at all.

    Args:
        folder: the records, where W&B keeps its runs if the host does not answer.

    Raises:
        UserError: wandb is not installed, or W&B is asked for online and nobody is logged in.
    """
    if tracker.name == "csv":
        return
    try:
        import wandb  # noqa: F401
    except ImportError:
        raise UserError(f"tracker={tracker.name} needs the package wandb: pip install wandb.") from None
    if tracker.name != "wandb" or tracker.name in _out_of_reach:
        return
    if not (os.environ.get("WANDB_API_KEY") or _logged_in(tracker, folder)):
        raise UserError(
            "tracker=wandb needs a login: run wandb login, set WANDB_API_KEY, or take tracker=wandb-offline."
        )


def _logged_in(tracker: TrackerSettings, folder: Path) -> bool:
    import wandb

    try:
        return bool(wandb.login(prompt=False))
    except (Exception, SystemExit) as error:  # credentials are there and the server is not: that loses no run
        _give_up(tracker, folder, error)
        return True


def track(tracker: TrackerSettings, record: Record, folder: Path) -> None:
    """Hand a record to the tracker; what goes wrong there is said and not raised."""

    def tell(run: Any) -> None:
        run.summary.update(values_of(record))
        if record.status == "failed":
            run.finish(exit_code=1)

    # the attempt tells a retry apart
    about = {"name": record.name, "id": f"{record.name}-{record.attempt}", "job_type": "run"}
    config = _plain({**record.config, "fingerprint": record.fingerprint})
    _hand_over(tracker, folder, about | {"config": config}, tell, "the record is safe")


def track_report(tracker: TrackerSettings, report: Report, folder: Path) -> None:
    """Log the tables and figures of a study into one run of job type `report`."""

    def tell(run: Any) -> None:
        import wandb

        for key, frame in report.tables.items():
            run.log(
                {key: wandb.Table(columns=list(frame.columns), data=frame.astype(str).map(escape.csv).values.tolist())}
            )
        for figure in report.figures:
            run.log({figure.stem: wandb.Image(str(figure))})

    name = f"report-{report.study}-{report.scale}"
    about = {"name": name, "id": name, "job_type": "report"}
    config = {"study": report.study, "scale": report.scale}
    _hand_over(tracker, folder, about | {"config": config}, tell, "the tables are safe")


def values_of(record: Record) -> dict[str, Any]:
    """The numbers of a record under flat names, the same that its table shows."""
    values: dict[str, Any] = {"status": record.status, "reason": escape.terminal(record.reason)}
    values |= {f"sparsity/{key}": value for key, value in record.sparsity.items()}
    for measure in record.measures:
        name = escape.line(f"{measure['task']}/{measure['metric']}")
        values[name] = measure["value"]
        if measure["stderr"] is not None:
            values[f"{name}_stderr"] = measure["stderr"]
    values |= {f"seconds/{name}": stage["seconds"] for name, stage in record.stages.items()}
    return values


def _plain(value: Any) -> Any:
    """A configuration whose names and texts no terminal obeys."""
    if isinstance(value, Mapping):
        return {escape.line(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return escape.terminal(value) if isinstance(value, str) else value


def _hand_over(
    tracker: TrackerSettings, folder: Path, about: Mapping[str, Any], tell: Callable[[Any], None], safe: str
) -> None:
    """Open a W&B run and tell it everything; what cannot be told online, in time, is kept offline."""
    if tracker.name == "csv":
        return
    try:
        if tracker.name == "wandb-offline" or tracker.name in _out_of_reach:
            _tell_run(_opened(tracker, folder, about, online=False), tell)
            return
        try:
            _tell_run(_opened(tracker, folder, about, online=True), tell)
        except (Exception, SystemExit) as error:
            _end_service()
            _tell_run(_opened(tracker, folder, about, online=False), tell)
            _give_up(tracker, folder, error)  # it was the host, since without it all is well
    except (Exception, SystemExit) as error:
        print(f"tracker {tracker.name}: {_one_line(error)}; {safe}", file=sys.stderr)


def _tell_run(opened: Any, tell: Callable[[Any], None]) -> None:
    """Tell a W&B run everything and end it; it ends before an error travels on, or W&B would print a traceback."""
    failed: Exception | SystemExit | None = None
    with opened as run:
        try:
            tell(run)
        except (Exception, SystemExit) as error:
            failed = error
    if failed is not None:
        raise failed


def _opened(tracker: TrackerSettings, folder: Path, about: Mapping[str, Any], *, online: bool) -> Any:
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    return wandb.init(
        **about,
        project=tracker.project,
        group=tracker.group,
        mode="online" if online else "offline",
        resume="allow" if online else None,
        dir=str(folder),
        settings=wandb.Settings(silent=True, init_timeout=WAIT, finish_timeout=WAIT, finish_timeout_raises=True),
    )


def _end_service() -> None:
    """End the process that W&B talks through: a run that could not be opened keeps its id in use there."""
    import wandb

    with suppress(Exception, SystemExit):  # it exits with the status of that process, however that died
        wandb.teardown()


def _give_up(tracker: TrackerSettings, folder: Path, error: BaseException) -> None:
    """Ask the host no more in this process, and say what comes of it."""
    _out_of_reach.add(tracker.name)
    kept = shlex.quote(str(folder / "wandb"))
    said = f"the W&B runs of this process are kept offline from here on, to be uploaded by: wandb sync {kept}"
    print(f"tracker {tracker.name}: {_one_line(error)}; {said}", file=sys.stderr, flush=True)


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
