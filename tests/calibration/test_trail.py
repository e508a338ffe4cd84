"""A walk over pruned blocks that begins where it differs from the one before gives what a whole walk gives."""

from __future__ import annotations

import pytest
import torch
from helpers import tiny
from torch import Tensor

from harness.allocators.mrp import Mrp
from harness.calibration.probe import ModelProbe
from harness.calibration.stream import Stream, batched
from harness.calibration.trail import Trail
from harness.core.allocation import Budget
from harness.core.memory import Parked
from harness.core.pattern import Pattern, Unstructured
from harness.core.statistic import norms
from harness.methods.sparsegpt import SparseGPT
from harness.models.anatomy import anatomy_of

TOKENS = torch.randint(0, 64, (6, 16), generator=torch.Generator().manual_seed(0))
CPU = torch.device("cpu")


def probe_of(blocks: int = 4, scope: range | None = None) -> ModelProbe:
    model = tiny("llama", num_hidden_layers=blocks)
    where = scope or range(blocks)
    return ModelProbe(model, anatomy_of(model), batched(TOKENS, 32), where, method=SparseGPT())


def levels(probe: ModelProbe, *values: float) -> dict[str, Pattern]:
    return {site: Unstructured(value) for value, block in zip(values, probe.blocks, strict=True) for site in block}


def seen(probe: ModelProbe, *values: float, again: bool) -> dict[int, list[Tensor]]:
    """By block: its pruned weights and what its inputs were behind them."""
    return {
        block.index: [*(w.clone() for w in block.weights.values()), *(s.mean for s in block.observe(norms).values())]
        for block in probe.pruned(probe.method, levels(probe, *values), again=again)
    }


@pytest.mark.parametrize("scope", [range(4), range(1, 4)])
def test_what_is_left_out_is_the_same_and_the_rest_is_too(scope: range) -> None:
    probe, fresh = probe_of(scope=scope), probe_of(scope=scope)
    count = len(scope)
    whole = seen(probe, *[0.5] * count, again=False)
    assert list(whole) == list(scope)
    for values, left_out in [([0.5] * (count - 1) + [0.7], count - 1), ([0.5, 0.6] + [0.5] * (count - 2), 1)]:
        found, wanted = seen(probe, *values, again=True), seen(fresh, *values, again=False)
        assert list(found) == list(scope)[left_out:]
        assert all(torch.equal(a, b) for index in found for a, b in zip(found[index], wanted[index], strict=True))
    assert list(seen(probe, *[0.9] * count, again=True)) == list(scope)


def test_nothing_is_left_out_without_room() -> None:
    trail = Trail(limit=0)
    probe = probe_of()
    asked = [{site: Unstructured(0.5) for site in block} for block in probe.blocks]
    for index, patterns in enumerate(asked):
        trail.add(index, patterns, Parked(CPU, [torch.zeros(1, 2, 3)]))
    assert trail.front(asked) is None


def test_mrp_runs_fewer_blocks_for_the_same_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    run_piece = Stream.run_piece

    def forward(stream: Stream, index: int, hidden: Tensor) -> Tensor:
        runs.append(index)
        return run_piece(stream, index, hidden)

    monkeypatch.setattr(Stream, "run_piece", forward)
    found = Mrp().allocate(probe_of(), Budget(0.6))
    few = len(runs)
    runs.clear()
    monkeypatch.setattr(Trail, "front", lambda *_: None)
    assert Mrp().allocate(probe_of(), Budget(0.6)) == found
    assert few < 0.9 * len(runs)
