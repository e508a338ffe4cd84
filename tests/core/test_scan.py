"""Losses that planners ask for: what is kept of them, what they cost, and arithmetic on them by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import FakeEntry, tiny, windows

from harness.calibration.views.structure import DecoderView
from harness.core.depth import Amount, mean_updates
from harness.core.scan import Scan, greedy, one_by_one
from harness.core.structure import Cut, Unit
from harness.models.decoder import decoder_of
from harness.planners.shapley import Shapley, influences
from harness.runtime.errors import Failure, Refusal

BLOCKS = 4
TOKENS = windows(4)
CUTS = [Cut.of_blocks([block]) for block in range(BLOCKS)]


def view() -> DecoderView:
    decoder = decoder_of(tiny("llama", num_hidden_layers=BLOCKS))
    return DecoderView(decoder, [TOKENS], decoder.indices)


class Asked:
    """A view of which only losses are asked: one answer of made-up numbers for each cut, or the view's own."""

    def __init__(self, loss: Any) -> None:
        self.loss, self.asked, self.told = loss, 0, {}

    geometry = view().geometry

    def losses(self, cuts: Any, tokens: Any, objective: str) -> Any:
        self.asked += 1
        return torch.tensor([[self.loss(cut)] * len(tokens) for cut in cuts], dtype=torch.float64)

    def log(self, **facts: Any) -> None:
        self.told |= facts


def number(cut: Cut) -> float:
    return sum(0.1 * (unit.block + 1) for unit in cut.units)


def test_the_same_questions_are_answered_from_what_is_kept() -> None:
    kept: dict[str, Any] = {}
    first, again, other = Asked(number), Asked(number), Asked(number)
    scan = Scan(first, FakeEntry(kept, "it"), "nll")
    answers = [scan.losses(CUTS, TOKENS), scan.losses(CUTS[:2], TOKENS)]
    scan.write()
    scan = Scan(again, FakeEntry(kept, "it"), "nll")
    assert all(torch.equal(one, scan.losses(cuts, TOKENS)) for one, cuts in zip(answers, (CUTS, CUTS[:2]), strict=True))
    assert (first.asked, again.asked) == (2, 0)
    scan = Scan(other, FakeEntry(kept, "it"), "nll")
    assert torch.equal(scan.losses(CUTS, TOKENS), answers[0])
    assert scan.losses(CUTS[2:], TOKENS)[:, 0].tolist() == pytest.approx([0.3, 0.4])  # not what was asked second
    assert other.asked == 1
    scan.write()
    assert len(kept["it"]) == 2


def test_greedy_by_hand() -> None:
    """With block 3 gone, block 0 costs more than block 1: one-shot would take 3 and 0. No number is worse than any."""
    losses = {(3,): 1.0, (0,): 2.0, (1,): 3.0, (2,): 9.0, (0, 3): 8.0, (1, 3): 4.0, (2, 3): math.nan}
    asked = Asked(lambda cut: losses[cut.blocks])
    units = [Unit("block", block) for block in range(BLOCKS)]
    cut = greedy(asked, Scan(asked, FakeEntry({}, "it"), "nll"), units, Amount(2, "blocks"), TOKENS)
    assert cut == Cut.of_blocks([1, 3]) and asked.told["order"] == [["block", 3], ["block", 1]]
    assert [one["loss"] for one in asked.told["rounds"]] == [1.0, 4.0]
    with pytest.raises(Refusal, match="5 of the blocks cannot go"):
        greedy(asked, Scan(asked, FakeEntry({}, "it"), "nll"), units, Amount(5, "blocks"), TOKENS)
    nothing = Asked(lambda cut: math.nan)
    with pytest.raises(Failure, match="not finite"):
        greedy(nothing, Scan(nothing, FakeEntry({}, "it"), "nll"), units, Amount(1, "blocks"), TOKENS)


def test_influences_by_hand() -> None:
    present = torch.tensor([[True, True, False], [True, False, True], [False, True, True]])
    assert influences(present, torch.tensor([1.0, 2.0, 4.0]).double()) == [4 - 1.5, 2 - 2.5, 1 - 3.0]


def test_a_unit_that_no_half_lacks_is_said() -> None:
    with pytest.raises(Refusal, match="in all random halves or in none; take more calibration windows"):
        Shapley(networks="halves", halves=1, windows=1).plan(view())


def test_passes_are_counted() -> None:
    asked = view()
    runs: list[int] = []
    for index in range(BLOCKS):
        asked._decoder.block(index).mlp.register_forward_hook(lambda *_, index=index: runs.append(index))
    asked.losses(CUTS, TOKENS, "distance")
    shown = 1  # the first block runs once more, to show what it gives
    assert len(runs) - shown == one_by_one(BLOCKS) * BLOCKS


@torch.no_grad()
def test_mean_updates_are_those_of_the_model() -> None:
    asked = view()
    model = asked._decoder.model
    states = model(TOKENS, use_cache=False, output_hidden_states=True).hidden_states
    found = mean_updates(asked, Cut(frozenset({Unit("block", 1), Unit("attention", 2)})))
    torch.testing.assert_close(found[Unit("block", 1)], (states[2] - states[1]).mean(dim=(0, 1)), rtol=1e-4, atol=1e-5)
    block = model.model.layers[2]
    caught: list[Any] = []
    handle = block.self_attn.register_forward_hook(lambda _, __, output: caught.append(output[0]))
    model(TOKENS, use_cache=False)
    handle.remove()
    torch.testing.assert_close(found[Unit("attention", 2)], caught[0].mean(dim=(0, 1)), rtol=1e-4, atol=1e-5)
