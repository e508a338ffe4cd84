"""Waiting for SLURM jobs of which some may be lost.

submitit asks the accounting daemon how a job is; where there is none it waits for a killed job for ever. Hydra's
launcher gives up at the first job without a result, while the others still run. What a job returns is not needed: its
records are in their folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from submitit.core.utils import FailedJobError
from submitit.slurm.slurm import SlurmExecutor, SlurmInfoWatcher, SlurmJob

from harness.runtime.errors import UserError

INTERVAL = 15
"""Seconds between two questions to SLURM, at most; one answers for all jobs."""
LAG = 2
"""Seconds in which a shared file system shows what a job wrote last."""


class QueueWatcher(SlurmInfoWatcher):
    """The state of jobs by `squeue`: one that the queue does not hold has ended, however it did."""

    def update(self) -> None:
        """Ask for all jobs of this user at once; where SLURM does not answer, what was known stays."""
        self._last_status_check = time.time()
        try:
            asked = subprocess.run(
                ["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i"],
                capture_output=True, text=True, timeout=60, check=True, encoding="utf-8",
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError):
            return
        queue = asked.stdout.split()
        for job in self._registered - self._finished:
            self._info_dict[job] = {"State": "RUNNING" if job in queue else "ENDED"}
            if job not in queue:
                self._finished.add(job)


class Refused(BaseException):
    """SLURM did not take the jobs, in its words; no `Exception`, for Hydra shows a traceback of those."""


@contextmanager
def patient() -> Iterator[None]:
    """While this holds, submitit's SLURM jobs are watched by `squeue`, and one that is lost is said and passed over.

    Raises:
        UserError: SLURM refused the jobs.
    """
    ours = [
        (SlurmJob, "watcher", QueueWatcher(delay_s=INTERVAL)),
        (SlurmJob, "results", _waited_for),
        (SlurmExecutor, "_submit_command", _submitted_by(SlurmExecutor._submit_command)),
    ]
    theirs = [(owner, name, getattr(owner, name)) for owner, name, _ in ours]
    _set(ours)
    try:
        yield
    except Refused as refused:
        raise UserError(f"SLURM refused the jobs: {refused}; adapt conf/cluster or hydra.launcher.….") from refused
    except KeyboardInterrupt:
        print("the jobs that were submitted go on; squeue lists them, scancel ends them", file=sys.stderr)
        raise
    finally:
        _set(theirs)


def _set(attributes: Sequence[tuple[type, str, Any]]) -> None:
    for owner, name, value in attributes:
        setattr(owner, name, value)


def _submitted_by(submit: Callable[..., Any]) -> Callable[..., Any]:
    def submitted(executor: SlurmExecutor, command: str) -> Any:
        try:
            return submit(executor, command)
        except FailedJobError as error:
            said = str(error).strip() or "sbatch failed"
            raise Refused(said.splitlines()[-1].removeprefix("sbatch: error: ").rstrip(".")) from error

    return submitted


def _waited_for(job: SlurmJob[Any]) -> list[JobReturn]:
    """In place of a job's results, once it has ended: which records it says it wrote."""
    job.wait()
    if not job.paths.result_pickle.exists():
        time.sleep(LAG)
    said = (job.stdout() or "").splitlines()  # a job that was queued again says some of it twice
    for line in dict.fromkeys(line for line in said if line.startswith("record: ")):
        print(line, flush=True)
    if not job.paths.result_pickle.exists():
        print(f"SLURM job {job.job_id} left no result; its log: {job.paths.stderr}", file=sys.stderr, flush=True)
    return [JobReturn(status=JobStatus.COMPLETED)]
