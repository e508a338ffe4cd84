"""A walk over pruned blocks that begins where it differs from the one before gives what a whole walk gives."""

from __future__ import annotations

import pytest
import torch
from helpers import tiny
from torch import Tensor

from harness.allocators.mrp import Mrp
from harness.calibration.cache.prefixes import PrefixCache
from harness.calibration.views.model import LiveModelView
from harness.calibration.walk.batches import batched
from harness.calibration.walk.stream import Stream
from harness.core.allocation import Budget
from harness.core.pattern import Pattern, Unstructured
from harness.core.statistic import squared_norms
from harness.methods.sparsegpt import SparseGPT
from harness.models.decoder import decoder_of
from harness.runtime.memory import OffloadableTensors

TOKENS = torch.randint(0, 64, (6, 16), generator=torch.Generator().manual_seed(0))
CPU = torch.device("cpu")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The blocks that run, in order."""
    indices: list[int] = []
    run_piece = Stream.run_piece

    def forward(stream: Stream, index: int, *given: Tensor) -> Tensor:
        indices.append(index)
        return run_piece(stream, index, *given)

    monkeypatch.setattr(Stream, "run_piece", forward)
    return indices


def probe_of(blocks: int = 4, scope: range | None = None) -> LiveModelView:
    model = tiny("llama", num_hidden_layers=blocks)
    where = scope or range(blocks)
    return LiveModelView(decoder_of(model), batched(TOKENS, 32), where, method=SparseGPT())


def levels(view: LiveModelView, *values: float) -> dict[str, Pattern]:
    return {site: Unstructured(value) for value, block in zip(values, view.blocks, strict=True) for site in block}


def seen(view: LiveModelView, *values: float, reuse_prefix: bool) -> dict[int, list[Tensor]]:
    """By block: its pruned weights and what its inputs were behind them."""
    return {
        block.index: [
            *(w.clone() for w in block.weights.values()),
            *(s.mean_sq for s in block.observe(squared_norms).values()),
        ]
        for block in view.pruned(view.method, levels(view, *values), reuse_prefix=reuse_prefix)
    }


@pytest.mark.parametrize("scope", [range(4), range(1, 4)])
def test_what_is_left_out_is_the_same_and_the_rest_is_too(scope: range) -> None:
    view, fresh = probe_of(scope=scope), probe_of(scope=scope)
    count = len(scope)
    whole = seen(view, *[0.5] * count, reuse_prefix=False)
    assert list(whole) == list(scope)
    for values, left_out in [([0.5] * (count - 1) + [0.7], count - 1), ([0.5, 0.6] + [0.5] * (count - 2), 1)]:
        found, wanted = seen(view, *values, reuse_prefix=True), seen(fresh, *values, reuse_prefix=False)
        assert list(found) == list(scope)[left_out:]
        assert all(torch.equal(a, b) for index in found for a, b in zip(found[index], wanted[index], strict=True))
    assert list(seen(view, *[0.9] * count, reuse_prefix=True)) == list(scope)


@pytest.mark.parametrize(("limit", "begins"), [(0, None), (24, 2), (48, 3), (1000, 5)])
def test_a_walk_begins_at_the_last_block_for_which_there_was_room(limit: int, begins: int | None) -> None:
    """Four blocks from the third on, of which the last is to change; hidden states of 24 bytes each."""
    cache = PrefixCache(limit)
    patterns: list[dict[str, Pattern]] = [{f"{index}": Unstructured(0.5)} for index in range(2, 6)]
    for index, mine in enumerate(patterns, 2):
        cache.add(index, mine, OffloadableTensors(CPU, [torch.full((1, 2, 3), float(index))]))
    front = cache.resume_at([*patterns[:3], {"5": Unstructured(0.6)}])
    assert (front and front[0]) == begins
    if front:
        assert float(front[1][0].mean()) == begins
        again = cache.resume_at(patterns)  # what lay behind is forgotten
        assert again is None or again[0] < front[0]


def test_a_scope_that_begins_late_does_not_run_what_is_in_front_of_it_again(runs: list[int]) -> None:
    view = probe_of(scope=range(2, 4))
    first = seen(view, 0.5, 0.5, reuse_prefix=False)
    assert set(runs) == {0, 1, 2, 3} and list(first) == [2, 3]
    runs.clear()
    assert list(seen(view, 0.6, 0.5, reuse_prefix=True)) == [2, 3] and set(runs) == {2, 3}


def test_a_walk_that_was_left_in_the_middle_misleads_none() -> None:
    view, fresh = probe_of(), probe_of()
    next(iter(view.pruned(view.method, levels(view, 0.5, 0.5, 0.5, 0.5))))
    found, wanted = (
        seen(view, 0.5, 0.6, 0.5, 0.5, reuse_prefix=True),
        seen(fresh, 0.5, 0.6, 0.5, 0.5, reuse_prefix=False),
    )
    assert all(torch.equal(a, b) for index in found for a, b in zip(found[index], wanted[index], strict=True))


def test_mrp_runs_fewer_blocks_for_the_same_allocation(runs: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    found = Mrp().allocate(probe_of(), Budget(0.6))
    few = len(runs)
    runs.clear()
    monkeypatch.setattr(PrefixCache, "resume_at", lambda *_: None)
    assert Mrp().allocate(probe_of(), Budget(0.6)) == found
    assert few < 0.9 * len(runs)
