"""The command line: a run, a sweep, a study, or a question about a study."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence

import hydra
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig

from harness import compose
from harness.config import RunConfig
from harness.core.errors import UserError
from harness.execute import execute
from harness.prepare import Prepared, prepare
from harness.record.schema import check_writable
from harness.record.trackers import check_tracker


def dispatch(arguments: list[str]) -> int:
    """Run what the arguments ask for; returns the exit status.

    Raises:
        UserError: a user's mistake, before anything has run.
    """
    if arguments and "=" not in arguments[0] and not arguments[0].startswith("-"):
        from harness.study import commands

        return commands.dispatch(arguments[0], arguments[1:])
    options = get_args_parser().parse_args(arguments)
    overrides = list(options.overrides)
    compose.register(compose.plugins_in(overrides))
    if options.help or options.hydra_help or options.cfg or options.info:
        return _through_hydra(arguments, lambda config: None)
    if study := _value_of(overrides, "study"):
        from harness.study import commands

        return commands.run_study(study, [text for text in overrides if not text.startswith("study=")])
    points = compose.points(overrides)
    if not options.multirun and len(points) > 1:
        raise UserError("these overrides make a sweep; add -m to run its points.")
    ready = check_points(points)
    return _run(arguments, ready, in_sweep=options.multirun)


def check_points(points: Sequence[Sequence[str]]) -> list[tuple[RunConfig, Prepared]]:
    """Compose and prepare every point before the first runs.

    Raises:
        UserError: the first mistake found, with the point it is in if there are several.
    """
    ready = []
    for point in points:
        try:
            cfg = compose.compose_run(point)
            check_tracker(cfg.tracker)
            check_writable("records", cfg.records)
            if cfg.save is not None:
                check_writable("save", cfg.save)
            ready.append((cfg, prepare(cfg)))
        except UserError as error:
            if len(points) == 1:
                raise
            raise UserError(f"at the point {' '.join(point)}: {error}") from error
    folders = [cfg.save for cfg, _ in ready if cfg.save is not None]
    if len(set(folders)) < len(folders):
        raise UserError(
            "several points would save to one folder; give each its own, for example save='out/${method.name}'."
        )
    return ready


def _run(arguments: list[str], ready: list[tuple[RunConfig, Prepared]], *, in_sweep: bool) -> int:
    """Let Hydra launch what was checked; the status is read from the records afterwards."""
    mistakes: list[UserError] = []

    def job(config: DictConfig) -> str | None:
        cfg = compose.typed(compose.plain(config))
        try:
            path, record = execute(cfg, prepare(cfg), in_sweep=in_sweep)
        except UserError as error:
            mistakes.append(error)
            return None
        print(f"record: {path}", flush=True)
        return str(path) if record.status != "failed" else None

    _through_hydra(arguments, job)
    if mistakes:
        raise mistakes[0]
    return worst_status(ready)


def worst_status(ready: Sequence[tuple[RunConfig, Prepared]]) -> int:
    """1 if any point has no finished record, else 0."""
    from harness.record.schema import FINISHED, find

    found = [find(cfg.records, prepared.fingerprint) for cfg, prepared in ready]
    return 0 if all(item and item[1].status in FINISHED for item in found) else 1


def _through_hydra(arguments: list[str], job: Callable[[DictConfig], object]) -> int:
    sys.argv = ["harness", *arguments]
    decorated = hydra.main(version_base="1.3", config_path=str(compose.CONF), config_name="config")(job)
    try:
        decorated()
    except SystemExit as stop:
        return int(stop.code or 0)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def _value_of(overrides: Sequence[str], key: str) -> str | None:
    found = [text.split("=", 1)[1] for text in overrides if text.startswith(f"{key}=")]
    return found[-1] if found and found[-1] not in ("", "null") else None
