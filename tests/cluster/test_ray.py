"""A study through a Ray that is started here: jobs in its workers, records in their folder, the table at the end."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.ray
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed (the cluster extra)")
def test_a_study_runs_in_two_jobs_of_a_ray(tmp_path: Path) -> None:
    before = {path.name for path in Path("/tmp").glob("ray*")}
    points = ["study=harness_embedded", "model=embedded-opt", "method=magnitude", "seed=0,1"]
    small = ["calibration.windows=4", "evaluation_limit=2", f"records={tmp_path / 'records'}"]
    command = [sys.executable, "-m", "harness", "cluster=ray", "cluster.jobs=2", *points, *small]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr
    assert "2 jobs, frozen in" in ran.stdout
    assert "| embedded-opt | magnitude |" in ran.stdout
    records = list((tmp_path / "records").glob("*.json"))
    assert len(records) == 2
    assert all(f"record: {path}" in ran.stdout for path in records)
    assert {path.name for path in Path("/tmp").glob("ray*")} == before  # its own folder is gone with it
