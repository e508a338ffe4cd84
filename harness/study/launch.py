"""The points of a study as one Hydra multirun over their numbers, so that any Hydra launcher can run them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from harness import compose
from harness.core.errors import UserError
from harness.execute import execute
from harness.prepare import prepare
from harness.study.gpus import run_points
from harness.study.grid import Study, load_study

LAUNCHERS = {"joblib": "JoblibLauncher", "slurm": "SlurmLauncher", "ray": "RayLauncher"}


def launch(study: Study, numbers: Sequence[int]) -> None:
    """Run these points through the launcher of the study's cluster (`conf/cluster`); blocks until all have ended.

    Raises:
        UserError: the launcher's package is not installed.
    """
    if not numbers:
        return
    if study.cluster == "gpus":
        run_points([(str(study.points[number]), cfg) for number in numbers if (cfg := study.points[number].cfg)])
        return
    installed = {plugin.__name__ for plugin in Plugins.instance().discover(Launcher)}
    if LAUNCHERS.get(study.cluster, "BasicLauncher") not in installed | {"BasicLauncher"}:
        raise UserError(f"cluster={study.cluster} needs a launcher that is not installed: pip install -e '.[cluster]'.")
    extra = ",".join(f"'{text}'" for text in study.extra)
    arguments = [
        "-m",
        f"cluster={study.cluster}",
        f"+numbered={study.name}",
        f"scale={study.scale}",
        f"+extra=[{extra}]",
        f"+point={','.join(map(str, numbers))}",
    ]
    # where a job was lost (killed, out of time) the files tell which, and the table is still to be made
    compose.through_hydra(arguments, run_numbered_point)


def run_numbered_point(config: DictConfig) -> str | None:
    """One job: the study's point of this number, from its file to its record; a user's mistake goes to its log."""
    extra = [str(text) for text in OmegaConf.to_container(config, resolve=False)["extra"]]  # type: ignore[index,call-overload]
    compose.register(compose.plugins_in(extra))
    point = load_study(config.numbered, config.scale, extra).points[config.point]
    assert point.cfg is not None
    try:
        path, _ = execute(point.cfg, prepare(point.cfg), in_sweep=True)
    except UserError as error:
        print(f"error: at the point {point}: {error}", file=sys.stderr, flush=True)
        return None
    print(f"record: {path}", flush=True)
    return str(path)
