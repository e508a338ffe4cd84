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
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.core.utils import JobReturn, JobStatus
from submitit.slurm.slurm import SlurmInfoWatcher, SlurmJob

INTERVAL = 15
"""Seconds between two questions to SLURM, at most; one answers for all jobs."""
LAG = 2
"""Seconds in which a shared file system shows what a job wrote last."""


class QueueWatcher(SlurmInfoWatcher):
    """The state of jobs by `squeue`: one that the queue does not hold has ended, however it did."""

    def update(self) -> None:
        """Ask for all jobs of this user at once; where SLURM does not answer, what was known stays."""
        self._last_status_check = time.time()
        command = ["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i"]
        try:
            queue = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split()
        except (OSError, subprocess.SubprocessError):
            return
        for job in self._registered - self._finished:
            self._info_dict[job] = {"State": "RUNNING" if job in queue else "ENDED"}
            if job not in queue:
                self._finished.add(job)


@contextmanager
def patient() -> Iterator[None]:
    """While this holds, submitit's SLURM jobs are watched by `squeue`, and one that is lost is said and passed over."""
    before = SlurmJob.watcher, SlurmJob.results
    SlurmJob.watcher, SlurmJob.results = QueueWatcher(delay_s=INTERVAL), _waited_for
    try:
        yield
    except KeyboardInterrupt:
        print("the jobs that were submitted go on; squeue lists them, scancel ends them", file=sys.stderr)
        raise
    finally:
        SlurmJob.watcher, SlurmJob.results = before


def _waited_for(job: SlurmJob) -> list[JobReturn]:
    """In place of a job's results: nothing, once it has ended."""
    job.wait()
    if not job.paths.result_pickle.exists():
        time.sleep(LAG)
    if not job.paths.result_pickle.exists():
        print(f"SLURM job {job.job_id} left no result; its log: {job.paths.stderr}", file=sys.stderr, flush=True)
    return [JobReturn(status=JobStatus.COMPLETED)]
