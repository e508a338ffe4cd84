"""The command line: a run, a sweep, a study, or a question about a study."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from harness import compose, session
from harness.config import RunConfig
from harness.core.errors import UserError
from harness.execute import check_points, execute, execute_each
from harness.prepare import prepare
from harness.record.claim import Busy, Watch
from harness.study.plan import Files, attempts, has_finished


def dispatch(arguments: list[str]) -> int:
    """Run what the arguments ask for; returns the exit status. What points kept for one another ends with them.

    Raises:
        UserError: a user's mistake, before anything has run.
    """
    try:
        return _dispatch(arguments)
    finally:
        session.end()


def _dispatch(arguments: list[str]) -> int:
    if arguments and "=" not in arguments[0] and not arguments[0].startswith("-"):
        from harness.study import commands

        return commands.dispatch(arguments[0], arguments[1:])
    options = _parsed(arguments)
    overrides = list(options.overrides)
    arguments = [text for text in arguments if text not in overrides] + overrides  # Hydra wants its flags together
    if chosen := next((text for text in overrides if re.match(r"[+~]*hydra/(launcher|sweeper)\b", text)), None):
        raise UserError(f"{chosen}: how points are run is chosen by cluster={', '.join(compose.choices('cluster'))}.")
    compose.register(compose.plugins_in(overrides))
    if options.help or options.hydra_help or options.cfg or options.info:
        return compose.through_hydra(arguments, lambda config: None)
    if study := _value_of(overrides, "study"):
        from harness.study import commands

        return commands.run_study(study, [text for text in overrides if not text.startswith("study=")])
    points = compose.points(overrides)
    if not options.multirun and len(points) > 1:
        raise UserError("these overrides make a sweep; add -m to run its points.")
    cluster = _value_of(overrides, "cluster") or "local"
    in_process = cluster == "local" or not options.multirun  # Hydra launches sweeps only
    composed = [(" ".join(point), _composed(point, alone=len(points) == 1)) for point in points]
    check_points(composed, here=in_process or cluster in compose.THIS_MACHINE)
    if cluster == "gpus" and options.multirun:
        return _over_gpus(composed)
    if not in_process:
        return _launched(cluster, overrides, composed)
    return _run(arguments, [cfg for _, cfg in composed], in_sweep=options.multirun)


def _parsed(arguments: list[str]) -> Namespace:
    """Hydra's own flags, anywhere among the overrides."""
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}; python -m harness --hydra-help lists the flags.")

    parser.error = refuse  # type: ignore[method-assign]
    options = parser.parse_intermixed_args(arguments)
    if sum(map(bool, (options.run, options.multirun, options.cfg, options.info, options.shell_completion))) > 1:
        refuse("only one of --run, --multirun, --cfg, --info and --shell-completion can be given")
    return options


def _composed(point: Sequence[str], *, alone: bool) -> RunConfig:
    try:
        return compose.compose_run(point)
    except UserError as error:
        if alone:
            raise
        raise UserError(f"at the point {' '.join(point)}: {error}") from error


def _run(arguments: list[str], points: Sequence[RunConfig], *, in_sweep: bool) -> int:
    """Let Hydra run here what was checked, not what `conf/` says by then. Returns 1 if a point has failed, else 0."""
    mistakes: list[UserError] = []
    statuses: list[str] = []
    later: list[RunConfig] = []
    watch = Watch() if in_sweep else None

    def job(_: DictConfig) -> str | None:
        cfg = points[HydraConfig.get().job.num if in_sweep else 0]
        try:
            path, record = execute(cfg, prepare(cfg), in_sweep=in_sweep, watch=watch)
        except Busy:
            later.append(cfg)
            return None
        except UserError as error:
            mistakes.append(error)
            return None
        statuses.append(record.status)
        print(f"record: {path}", flush=True)
        return str(path) if record.status != "failed" else None

    broken = compose.through_hydra(arguments, job)
    if mistakes:
        raise mistakes[0]
    for _, path, record, _ in execute_each({number: (cfg, prepare(cfg)) for number, cfg in enumerate(later)}):
        statuses.append(record.status)
        print(f"record: {path}", flush=True)
    return 1 if broken or "failed" in statuses else 0


def _launched(cluster: str, overrides: Sequence[str], points: Sequence[tuple[str, RunConfig]]) -> int:
    """A sweep through a launcher; returns 1 if a point has failed or was lost."""
    from harness.study.launch import launch_sweep

    configs = [cfg for _, cfg in points]
    before = attempts(configs)
    launch_sweep(cluster, overrides, points)
    files = Files()
    return 0 if all(has_finished(cfg, before, files) for cfg in configs) else 1


def _over_gpus(points: Sequence[tuple[str, RunConfig]]) -> int:
    """A sweep over the GPUs of this machine; returns 1 if a point has failed or was lost."""
    from harness.record import schema
    from harness.study.gpus import run_points

    paths = run_points(points)
    return 0 if all(path and schema.read(Path(path)).status in schema.FINISHED for path in paths) else 1


def _value_of(overrides: Sequence[str], key: str) -> str | None:
    found = [text.split("=", 1)[1] for text in overrides if text.startswith(f"{key}=")]
    return found[-1] if found and found[-1] not in ("", "null") else None
