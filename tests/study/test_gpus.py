"""Points over the GPUs of one host; the processes are real, the GPUs are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import compose
from harness.overrides import plugins_in
from harness.runtime.errors import UserError
from harness.study import gpus

PLUGIN = """
from __future__ import annotations

import os
from dataclasses import dataclass

from torch import Tensor

from harness.catalogue import component
from harness.core.interfaces import Pruned


@component("method", "witness")
@dataclass(frozen=True)
class Witness:
    \"\"\"Says which GPU its process sees, and dies where it is told to.\"\"\"

    dies: bool = False

    statistic = None

    def prune(self, weight: Tensor, seen: object, pattern: object) -> Pruned:
        if self.dies:
            os.kill(os.getpid(), 9)
        return Pruned(weight, weight != 0, f"gpu {os.environ['CUDA_VISIBLE_DEVICES']} process {os.getpid()}")
"""


@pytest.fixture
def sweep(options: list[str], tmp_path: Path) -> list[str]:
    """A sweep without evaluation, by a method that tells where it ran."""
    (tmp_path / "witness.py").write_text(PLUGIN)
    return [*options, f"plugins=[{tmp_path / 'witness.py'}]", "method=witness", "evaluation=[]"]


def points(*overrides: str, seeds: int = 1) -> list[tuple[str, Any]]:
    compose.register(plugins_in(overrides))
    return [(f"seed={seed}", compose.compose_run([*overrides, f"seed={seed}"])) for seed in range(seeds)]


def notes(path: str | None) -> str:
    assert path is not None
    return json.loads(Path(path).read_text())["notes"][0].partition(": ")[2]


def test_every_process_sees_one_gpu_and_runs_several_points(sweep: list[str]) -> None:
    records = gpus.run_points(points(*sweep, seeds=4), ["", "none-such"])
    assert len(set(records)) == 4
    seen = {notes(path) for path in records}
    assert len(seen) == 2 and {text.split(" process ")[0] for text in seen} == {"gpu ", "gpu none-such"}


def test_a_process_that_dies_loses_its_point_only(sweep: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    good = points(*sweep, seeds=2)
    records = gpus.run_points([good[0], *points(*sweep, "method.dies=true"), good[1]], [""])
    assert [path is None for path in records] == [False, True, False]
    assert notes(records[0]) != notes(records[2])  # of another process
    told = capfd.readouterr()
    assert "lost: the process of GPU none died at the point seed=0" in told.err
    assert told.out.count("record: ") == 2


def test_a_mistake_is_said_and_the_next_point_runs(sweep: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    wrong = points(*sweep, "scope=0-9")
    records = gpus.run_points([*wrong, *points(*sweep)], [""])
    assert records[0] is None and records[1] is not None
    assert "error: at the point seed=0: scope=0-9 does not fit" in capfd.readouterr().err


def test_a_process_stays_with_its_model(sweep: list[str]) -> None:
    mixed = [(str(number), _Named(name)) for number, name in enumerate("abacab")]
    queue, taken, model = gpus._Queue(list(enumerate(mixed))), [], None
    while found := queue.take(model):
        model = found[1][1].model.name
        taken.append((found[0], model))
    assert taken == [(0, "a"), (2, "a"), (4, "a"), (1, "b"), (5, "b"), (3, "c")]


class _Named:
    def __init__(self, name: str) -> None:
        self.model = self
        self.name = name


def test_what_cannot_be_spread_is_one_sentence(sweep: list[str]) -> None:
    with pytest.raises(UserError, match="cluster=gpus chooses the GPU; leave out device=cuda:0"):
        gpus.run_points(points(*sweep, "device=cuda:0"), [""])


def test_the_gpus_that_are_named_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5d")
    assert gpus.visible_gpus() == ["3", "GPU-5d"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert gpus.visible_gpus() == ["0", "1"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(UserError, match="cluster=gpus needs GPUs and this machine has none"):
        gpus.visible_gpus()


def test_a_sweep_over_gpus(typed: Callable, sweep: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "visible_gpus", lambda: [""])
    ran = typed("-m", *sweep, "seed=0,1", "cluster=gpus")
    assert ran.status == 0, ran.err
    assert ran.out.count("record: ") == 2
    assert typed("-m", *sweep, "method.dies=false,true", "cluster=gpus", "seed=7").status == 1
