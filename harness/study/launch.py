"""The points of a study, grouped into jobs, as one Hydra multirun over the jobs: any Hydra launcher runs them."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig

from harness import compose, groups
from harness.config import RunConfig
from harness.runtime.errors import UserError, unknown
from harness.study import jobs
from harness.study.estimate import estimate
from harness.study.gpus import run_points
from harness.study.grid import Study


def launch(study: Study, numbers: Sequence[int]) -> None:
    """Run these points through the launcher of the study's cluster (`conf/cluster`); blocks until all jobs have ended.

    Every job is written down first, in a private folder below `<records>/.sweep`. What is lost with a job is said, and
    stays to be run.

    Raises:
        UserError: the launcher's package is not installed, its settings cannot be, or its folder cannot be private.
    """
    if not numbers:
        return
    configs = {number: cfg for number in numbers if (cfg := study.points[number].cfg)}
    if study.cluster == "gpus":
        run_points([(str(study.points[number]), cfg) for number, cfg in configs.items()])
        return
    settings, launcher = compose.cluster_of(study.cluster, study.launcher)
    grouped = jobs.grouped(configs, _costs(list(configs.items()), study.scale), _count(settings))
    points = [[(str(study.points[number]), configs[number]) for number in group] for group in grouped]
    _launch(study.name, study.cluster, study.launcher, launcher, study.records, points)


def launch_sweep(cluster: str, overrides: Sequence[str], points: Sequence[tuple[str, RunConfig]]) -> None:
    """The points of a sweep (`-m`) with their labels, one job each, as `launch` does those of a study.

    `cluster.jobs`, if it is typed, groups them.
    """
    chosen = [text for text in overrides if is_of_launcher(text)]
    settings, launcher = compose.cluster_of(cluster, chosen)
    is_grouped = any(text.lstrip("+").startswith("cluster.jobs=") for text in chosen)
    configs = {number: cfg for number, (_, cfg) in enumerate(points)}
    costs = _costs(list(configs.items()), points[0][1].composed["scale"])
    numbers = jobs.grouped(configs, costs, _count(settings) if is_grouped else None)
    _launch("sweep", cluster, chosen, launcher, points[0][1].records, [[points[at] for at in job] for job in numbers])


def check_launcher(cluster: str, overrides: Sequence[str]) -> None:
    """Look at what is said of a cluster and its launcher (`hydra.launcher.…`, `cluster.jobs`) before anything runs.

    Raises:
        UserError: there is no such cluster, it has no launcher, or not these settings.
    """
    if cluster not in groups.choices("cluster"):
        raise unknown("cluster", cluster, groups.choices("cluster"))
    if not (chosen := [text for text in overrides if is_of_launcher(text)]):
        return
    if cluster in ("local", "gpus"):
        raise UserError(f"{chosen[0]} is for a launcher, and cluster={cluster} has none; take cluster=joblib or slurm.")
    settings, _ = compose.cluster_of(cluster, chosen)
    _count(settings)


def _launch(
    name: str, cluster: str, overrides: Sequence[str], launcher: Mapping[str, Any], records: Path,
    points: Sequence[Sequence[tuple[str, RunConfig]]],
) -> None:  # fmt: skip
    """Freeze the points of every job, let Hydra's launcher run the jobs, say what became of them.

    Args:
        overrides: those of the launcher; `launcher` are its settings with them.
    """
    with around(launcher):
        folder = private_folder(records) / name / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        folder.mkdir(parents=True)
        jobs.freeze(folder, points)
        _freeze_launcher(folder, name, cluster)
        print(f"{len(points)} jobs, frozen in {folder}", flush=True)
        place = f"hydra.sweep.dir='{folder}'"  # what a launcher pickles stays there, whatever overrides say
        arguments = ["-m", *overrides, place, f"job={','.join(map(str, range(len(points))))}"]
        compose.through_hydra(arguments, run_frozen_job, folder / "conf", "launch")
    for number in range(len(points)):
        _tell(number, jobs.ended(folder, number))


def run_frozen_job(config: DictConfig) -> list[str]:
    """One job, in whatever process the launcher has for it; returns the paths of its records."""
    return jobs.run_job(Path(config.folder), int(config.job))


def private_folder(records: Path) -> Path:
    """The folder below the records for what launchers write, some of it pickled: nobody else may read or write it.

    Raises:
        UserError: it is another user's, its mode cannot be set, or its name would mean something to a launcher.
    """
    folder = records.resolve() / ".sweep"
    if wrong := re.search(r"""[%$"'\\\x00-\x1f]""", str(folder)):
        raise UserError(
            f"a launcher's folder cannot hold {wrong[0]!r} in its name; choose another records= than {records}."
        )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not folder.is_symlink() and folder.stat().st_uid == os.getuid():
            folder.chmod(0o700)
            if stat.S_IMODE(folder.stat().st_mode) == 0o700:
                return folder
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}.") from error
    raise UserError(f"{folder} has to be a folder of yours that nobody else can open; choose another records=.")


def is_of_launcher(override: str) -> bool:
    """Return whether an override says how points are launched, and nothing of the points."""
    return override.lstrip("+~").startswith(("hydra.", "cluster."))


def around(launcher: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Context that a launcher with these settings needs.

    Raises:
        UserError: SLURM's commands are not here, or joblib is to start no process.
    """
    kind = launcher["_target_"].rpartition(".")[2]
    if kind == "JoblibLauncher" and launcher["n_jobs"] == 0:
        raise UserError("hydra.launcher.n_jobs=0 starts no process; it has to be 1 or more, or -1 for all cores.")
    if kind == "SlurmLauncher":
        if shutil.which("sbatch") is None or shutil.which("squeue") is None:
            raise UserError("SLURM's commands sbatch and squeue are not on this machine; start from a login node.")
        from harness.study.slurm import patient

        return patient()
    if kind == "RayLauncher" and launcher["ray"]["init"].get("address") == "local":
        return _own_ray()
    return nullcontext()


@contextmanager
def _own_ray() -> Iterator[None]:
    """A Ray that is started here and stopped again, its sockets and logs in a private folder of a short name."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        os.environ["RAY_TMPDIR"] = folder
        try:
            yield
        finally:
            del os.environ["RAY_TMPDIR"]
            import ray

            ray.shutdown()


def _costs(points: Sequence[tuple[int, RunConfig]], scale: str) -> dict[int, float]:
    """Seconds of every point by the estimate; where one cannot be estimated, every point counts alike."""
    device = "cuda" if torch.cuda.is_available() or scale == "paper" else "cpu"
    costs = {number: guess.seconds for number, cfg in points if (guess := estimate(cfg, device))}
    return costs if len(costs) == len(points) else {number: 1.0 for number, _ in points}


def _count(settings: Mapping[str, Any]) -> int | None:
    count = settings.get("jobs")
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
        raise UserError(f"cluster.jobs={count} has to be a whole number of at least 1, or null for one job a point.")
    return count


def _freeze_launcher(folder: Path, name: str, cluster: str) -> None:
    """A configuration of the launcher alone: launchers compose it anew in every job, from this copy."""
    shutil.copytree(groups.CONF / "cluster", folder / "conf" / "cluster")
    quiet = [{f"override hydra/{part}_logging": "disabled"} for part in ("job", "hydra")]
    content = {
        "defaults": ["_self_", {"cluster": cluster}, *quiet],
        "folder": str(folder),
        "job": None,
        "hydra": {
            "output_subdir": None,
            "job": {"name": f"harness-{name}"},
            "run": {"dir": "."},
            "sweep": {"dir": str(folder), "subdir": "${hydra.job.num}"},
        },
    }
    (folder / "conf" / "launch.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


def _tell(number: int, ended: jobs.Ended) -> None:
    for path in ended.records:
        print(f"record: {path}", flush=True)
    for error in ended.errors:
        print(f"error: {error}", file=sys.stderr, flush=True)
    if ended.lost:
        points = f"{len(ended.lost)} of its {len(ended.points)} points"
        print(f"lost: job {number} ended before {points} (killed, or out of time)", file=sys.stderr, flush=True)
