"""The command line: a run, a sweep, a study, or a question about a study."""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser

from harness import compose, groups
from harness.config import RunConfig
from harness.execute import check_points, execute, execute_each
from harness.overrides import last_of, plugins_in, points, read, say, value_of
from harness.prepare import Run
from harness.report.numbers import line, seconds
from harness.runtime import escape
from harness.runtime.errors import UserError, unknown
from harness.study.launch import check_launcher, launch_sweep
from harness.study.plan import Files, attempts, has_finished
from harness.study.progress import SweepProgress, show_table

REFUSED = {
    "config_path": "the configuration is the harness's own, in conf/; change it by overrides such as seed=1, and look "
    "at it by --cfg=job",
    "shell_completion": "python -m harness completion bash (or zsh) prints the script that completes options",
}
"""Flags of Hydra that nothing here would check, or that it has no use for."""
REFUSED |= dict.fromkeys(("config_name", "config_dir", "experimental_rerun"), REFUSED["config_path"])
OPTIONS_OF_COMMANDS = "python -m harness <command> study=<name> scale=<scale> <option>=<value>"


def asked_for(arguments: list[str]) -> Callable[[], int]:
    """Look at all that arguments ask for; doing it gives the exit status.

    Raises:
        UserError: a user's mistake, before anything has run.
    """
    if arguments and "=" not in arguments[0] and not arguments[0].startswith(("-", "~")):
        return partial(_command, arguments[0], arguments[1:])
    options, replaced = _parsed(arguments)
    overrides = list(options.overrides)
    groups.register(plugins_in(overrides))
    if options.help or options.hydra_help or options.cfg or options.info:
        return partial(_show, options, [text for text in arguments if text not in options.given] + overrides)
    if study := value_of(overrides, "study"):
        from harness.study import commands

        of_study = [text for text in overrides if not text.startswith("study=")]
        return partial(commands.run_study, study, of_study, replaced)
    cluster = value_of(overrides, "cluster") or "local"
    check_launcher(cluster, overrides)
    lists = points(overrides)
    if not options.multirun and len(lists) > 1:
        raise UserError("these overrides make a sweep; add -m to run its points.")
    composed = [(" ".join(point), _composed(point, alone=len(lists) == 1)) for point in lists]
    if cluster != "local" and not options.multirun:
        raise UserError(f"cluster={cluster} runs the points of sweeps and studies; add -m, or leave it out.")
    ready = check_points(composed, here=cluster in compose.THIS_MACHINE)
    say(replaced)
    if cluster == "local":
        return partial(_sweep, [label for label, _ in composed], ready) if options.multirun else partial(_run, ready[0])
    return partial(_over_gpus, composed) if cluster == "gpus" else partial(_launched, cluster, overrides, composed)


def _command(name: str, arguments: list[str]) -> int:
    from harness.study import commands

    if name in commands.COMMANDS:
        options, replaced = _parsed(arguments)
        if flag := next((text for text in arguments if text.startswith("-")), None):
            raise UserError(f"{flag}: {name} takes no flags; {OPTIONS_OF_COMMANDS}.")
        return commands.dispatch(name, options.overrides, replaced)
    return commands.dispatch(name, arguments)


def _parsed(arguments: Sequence[str]) -> tuple[Namespace, list[str]]:
    """Hydra's own flags, anywhere among the overrides, and these: the one place that refuses any of them.

    Returns:
        The flags and the overrides that count, and sentences on those that do not.
    """
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}; python -m harness --hydra-help lists the flags.")

    parser.error = refuse  # type: ignore[method-assign]
    options = parser.parse_intermixed_args(arguments)
    for name, why in REFUSED.items():
        if getattr(options, name) not in (None, False):
            raise UserError(f"{_typed(name, arguments)}: {why}.")
    if sum(map(bool, (options.run, options.multirun, options.cfg, options.info))) > 1:
        refuse("only one of --run, --multirun, --cfg and --info can be given")
    if options.resolve and not (options.cfg or options.help):
        raise UserError("--resolve needs --cfg or --help beside it.")
    if options.package and not options.cfg:
        raise UserError("--package needs --cfg beside it.")
    options.given = options.overrides
    options.overrides, replaced = last_of(options.given)
    read(options.overrides)
    return options, replaced


def _typed(name: str, arguments: Sequence[str]) -> str:
    """How a flag was typed, which may be abbreviated."""
    short = "-" + "".join(word[0] for word in name.split("_"))
    long = "--" + name.replace("_", "-")
    for text in arguments:
        flag = text.partition("=")[0]
        if flag == short or (flag.startswith("--") and long.startswith(flag)) or re.match(rf"{short}\w", text):
            return text
    return long


def _show(options: Namespace, arguments: Sequence[str]) -> int:
    """Let Hydra print a configuration, or what can be configured."""
    overrides = options.overrides
    if options.hydra_help:
        arguments = ["--hydra-help"]  # Hydra would apply overrides to a configuration that has none of our options
    elif study := next((text for text in overrides if re.fullmatch(r"study=(?!null$).+", text)), None):
        raise UserError(
            f"{study}: the flags of Hydra show one run, not a study; python -m harness plan {study} lists its points."
        )
    else:
        if len(points(overrides)) > 1:
            raise UserError("these overrides make a sweep; the flags of Hydra show one run.")
        _check_package(options.package, compose.compose_plain(overrides, resolved=options.resolve))
    return compose.through_hydra(arguments, lambda config: None)


def _check_package(package: str | None, composed: Mapping[str, Any]) -> None:
    """See that the part of the configuration that is to be shown is there; what Hydra's own has is left to Hydra.

    Raises:
        UserError: it is not.
    """
    part: Any = composed
    for name in (package or "").split(".") if package and package.partition(".")[0] != "hydra" else ():
        if not isinstance(part, Mapping) or name not in part:
            raise unknown("package", package or "", composed)
        part = part[name]


def _composed(point: Sequence[str], *, alone: bool) -> RunConfig:
    try:
        return compose.compose_run(point)
    except UserError as error:
        if alone:
            raise
        raise UserError(f"at the point {' '.join(point)}: {error}") from error


def _run(run: Run) -> int:
    """Compute a run. Returns 1 if it has failed, else 0."""
    path, record, _ = execute(run, in_sweep=False)
    print(escape.terminal(f"{line(record)}; {seconds(record):.1f} s"), file=sys.stderr, flush=True)
    print(f"record: {path}", flush=True)
    return 1 if record.status == "failed" else 0


def _sweep(labels: Sequence[str], runs: Sequence[Run]) -> int:
    """Compute the points of a sweep one after the other. Returns 1 if one has failed or left no record, else 0."""
    progress = SweepProgress(dict(enumerate(labels)))
    records = []
    for number, (path, record, is_new) in execute_each(dict(enumerate(runs)), lambda number: labels[number]):
        print(progress.ended(number, record, is_new=is_new), file=sys.stderr, flush=True)
        print(f"record: {path}", flush=True)
        records.append(record)
    show_table(records)
    return 0 if sum(record.status != "failed" for record in records) == len(runs) else 1


def _launched(cluster: str, overrides: Sequence[str], points: Sequence[tuple[str, RunConfig]]) -> int:
    """A sweep through a launcher; returns 1 if a point has failed or was lost."""
    configs = [cfg for _, cfg in points]
    before = attempts(configs)
    launch_sweep(cluster, overrides, points)
    files = Files()
    show_table([found[-1][1] for cfg in configs if (found := files.records(cfg))])
    return 0 if all(has_finished(cfg, before, files) for cfg in configs) else 1


def _over_gpus(points: Sequence[tuple[str, RunConfig]]) -> int:
    """A sweep over the GPUs of this machine; returns 1 if a point has failed or was lost."""
    from harness.record import schema
    from harness.study.gpus import run_points

    records = [schema.read(Path(path), sites=False) for path in run_points(points) if path]
    show_table(records)
    return 0 if sum(record.status in schema.FINISHED for record in records) == len(points) else 1
