"""Real text and a real small model: the numbers of the authors' code, from the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

REAL = ["model=proxy-llama-11m", "calibration=c4-sample", "evaluation=[ptb]", "dtype=float32", "device=cpu"]


@pytest.mark.assets
def test_dense_and_wanda_are_those_of_the_authors_code(typed: Callable, tmp_path: Path) -> None:
    dense = typed(*REAL, f"records={tmp_path}", "method=none").record["measures"][0]
    assert dense["value"] == pytest.approx(34.33, abs=0.05)
    assert dense["samples"] == 193
    wanda = typed(*REAL, f"records={tmp_path}", "method=wanda", "sparsity=0.5").record["measures"][0]
    assert wanda["value"] == pytest.approx(48.14, rel=1e-3)
