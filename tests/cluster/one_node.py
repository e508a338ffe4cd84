"""A real SLURM of one node, without systemd: munge, slurmctld and slurmd from Debian's packages, in one folder."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
CLIENTS = ("sbatch", "srun", "scancel", "squeue", "sinfo")
PATIENCE = 30
"""Seconds to wait for a daemon."""

SETTINGS = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=8
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,sched_min_interval=0
ReturnToService=2
KillWait=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=test Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
"""A requeued job starts as soon as its credential has expired, so that is soon; there is no accounting daemon."""


@dataclass(frozen=True)
class OneNode:
    """A SLURM that runs: the environment in which its commands find it."""

    folder: Path
    environment: Mapping[str, str]

    def ask(self, *command: str) -> str:
        """What one of SLURM's commands prints; what it says of a job that is gone is not minded."""
        ran = subprocess.run(command, env=dict(self.environment), capture_output=True, text=True, timeout=PATIENCE)
        return ran.stdout

    @property
    def jobs(self) -> dict[str, str]:
        """The jobs that have not ended: id (`12_3` in an array) → state."""
        lines = self.ask("squeue", "--noheader", "--array", "--format=%i %T").splitlines()
        return {job: state for job, _, state in (line.strip().partition(" ") for line in lines)}


def why_not() -> str:
    """Why such a SLURM cannot be started here, or nothing."""
    missing = [name for name in (*DAEMONS, *CLIENTS) if _where(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (apt-get install slurmctld slurmd slurm-client munge)"
    return "" if os.geteuid() == 0 else "slurmctld and slurmd are started as root"


@contextmanager
def one_node() -> Iterator[OneNode]:
    """Start it, and stop it whatever happens. Its folder is short, for sockets have short names."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host = socket.gethostname().partition(".")[0]
    ports = {"controller_port": _free_port(), "node_port": _free_port()}
    (folder / "slurm.conf").write_text(SETTINGS.format(folder=folder, host=host, **ports))
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    (folder / "munge.key").chmod(0o600)
    slurm = OneNode(folder, {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")})
    try:
        files = [f"--{name}={folder}/munge.{name.partition('-')[0]}" for name in ("socket", "key-file", "pid-file")]
        _start(slurm, "munged", "--force", *files, f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed")
        wait_for(lambda: (folder / "munge.socket").exists(), "munged")
        _start(slurm, "slurmctld")
        _start(slurm, "slurmd")
        wait_for(lambda: "idle" in slurm.ask("sinfo", "--noheader", "--format=%T"), "the node")
        yield slurm
    finally:
        _stop(slurm)
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Wait until a condition holds.

    Raises:
        TimeoutError: it does not.
    """
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"waited {seconds} s for {what}")
        time.sleep(0.05)


def _start(slurm: OneNode, daemon: str, *options: str) -> None:
    path = _where(daemon)
    assert path
    subprocess.run([path, *options], env=dict(slurm.environment), check=True, timeout=PATIENCE)


def _stop(slurm: OneNode) -> None:
    """End its jobs, then its daemons, by the process ids in their files."""
    if (slurm.folder / "slurmctld.pid").exists():
        for job in slurm.jobs:
            slurm.ask("scancel", "--signal=KILL", job)
            slurm.ask("scancel", job)
        try:
            wait_for(lambda: not slurm.jobs, "the last jobs", 10)
        except TimeoutError:
            pass
    for daemon in ("slurmd", "slurmctld", "munge"):
        file = slurm.folder / f"{daemon}.pid"
        if file.exists() and (text := file.read_text().strip()):
            _end(int(text))


def _end(process: int) -> None:
    for sent in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(process, sent)
            wait_for(lambda: not Path(f"/proc/{process}").exists(), f"process {process}", 5)
        except (ProcessLookupError, TimeoutError):
            continue
        return


def _where(command: str) -> str | None:
    return shutil.which(command, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
