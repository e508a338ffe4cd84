"""How far it is from a command line to the arithmetic of a method."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import harness
from harness.methods.wanda import Wanda

CALLS = 8
"""From `main` to `Wanda.prune`; with the console command or `python -m harness` in front of it nine."""


def test_few_calls_lie_between_a_command_and_a_method(
    typed: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, prune = str(Path(harness.__file__).parent), Wanda.prune
    seen: list[list[str]] = []

    def witness(self: Wanda, *arguments: Any) -> Any:
        frames = [frame for frame in traceback.extract_stack()[:-1] if frame.filename.startswith(home)]
        seen.append([frame.name for frame in frames])
        return prune(self, *arguments)

    monkeypatch.setattr(Wanda, "prune", witness)
    done = typed(f"records={tmp_path}", "calibration.windows=2", "evaluation=[]")
    assert done.status == 0
    assert seen[0][0] == "main" and seen[0][-1] == "prune_block"
    assert len(seen[0]) <= CALLS, " → ".join(seen[0])
