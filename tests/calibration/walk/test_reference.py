"""The walk over two streams, against the whole models: the partly pruned one and the dense one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from helpers import TINY, linears, pattern, tiny, windows
from torch import Tensor, nn

from harness.calibration.walk.reference import stream_beside_dense
from harness.compress import prune
from harness.core.interfaces import Difference
from harness.methods.magnitude import Magnitude
from harness.models.decoder import Decoder, decoder_of

BATCHES = [windows(3), windows(2, seed=1)]
ADDS = {name for name in TINY if name not in ("gemma2", "gemma3_text", "olmo2", "opt-350m")}
"""The others have a norm between the last linear of a part and the residual stream, or behind the sum."""


class Witness:
    """Magnitude on every group of linears in turn, which keeps the differences that it is shown."""

    beside_dense = True
    statistic = Magnitude().statistic

    def __init__(self) -> None:
        self.shown: dict[str, Difference] = {}

    def prune_block(self, block: Any, patterns: Mapping[str, Any]) -> dict[str, Any]:
        done = {}
        for group in block.groups:
            self.shown[group[0]] = block.difference(group)
            for site in group:
                done[site] = Magnitude().prune(block.weights[site], None, patterns[site])
                block.write(site, done[site].weight)
        return done


@torch.no_grad()
def run_whole(decoder: Decoder, site: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the whole model does at a site: inputs, outputs, the block's input and output, tokens by rows."""
    index = int(site.removeprefix(f"{decoder.anatomy.blocks}.").partition(".")[0])
    caught: dict[str, list[Tensor]] = {"x": [], "y": [], "in": [], "out": []}

    def at_linear(_: nn.Module, positional: tuple[Tensor, ...], output: Tensor) -> None:
        caught["x"].append(positional[0].flatten(0, -2))
        caught["y"].append(output.flatten(0, -2).clone())

    def at_block(_: nn.Module, positional: Any, named: Any, output: Any) -> None:
        caught["in"].append((positional[0] if positional else named["hidden_states"]).flatten(0, -2))
        caught["out"].append((output[0] if isinstance(output, tuple) else output).flatten(0, -2))

    handles = [
        decoder.model.get_submodule(site).register_forward_hook(at_linear),
        decoder.modules[index].register_forward_hook(at_block, with_kwargs=True),
    ]
    for batch in BATCHES:
        decoder.model(batch, use_cache=False)
    for handle in handles:
        handle.remove()
    x, y, before, behind = (torch.cat(caught[name]) for name in ("x", "y", "in", "out"))
    return x, y, before, behind


@pytest.mark.parametrize("name", TINY)
def test_differences_are_those_of_the_whole_models(name: str) -> None:
    """Brute force: the dense model, and one whose linears in front of the group are pruned, on the same tokens."""
    model, dense, partly = tiny(name), tiny(name), tiny(name)
    decoder, witness = decoder_of(model), Witness()
    sites = list(linears(model, decoder.modules))
    prune(decoder, BATCHES, range(2), witness, dict.fromkeys(sites, pattern("0.5")))
    scale = 2 / sum(map(len, BATCHES))
    for index in range(2):
        for group in decoder.anatomy.inputs:
            site = f"{decoder.anatomy.blocks}.{index}.{group[0]}"
            here, there, shown = (
                run_whole(decoder_of(partly), site),
                run_whole(decoder_of(dense), site),
                witness.shown[site],
            )
            x, x_dense = here[0], there[0]
            torch.testing.assert_close(shown.gram.matrix, scale * x.T @ x, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(shown.shift, scale * (x_dense - x).T @ x, rtol=1e-4, atol=1e-4)
            last, middle = group == decoder.anatomy.mlp[-1], group == decoder.anatomy.attention[-1]
            if name in ADDS and (last or middle):
                rest, rest_dense = (run[3] - run[1] if last else run[2] for run in (here, there))
                assert shown.drift is not None
                torch.testing.assert_close(shown.drift, scale * (rest_dense - rest).T @ x, rtol=1e-4, atol=1e-4)
            else:
                assert shown.drift is None
            for part in group:
                path = f"{decoder.anatomy.blocks}.{index}.{part}.weight"
                partly.get_parameter(path).data.copy_(model.get_parameter(path).data)
    assert witness.shown[f"{decoder.anatomy.blocks}.1.{decoder.anatomy.inputs[0][0]}"].shift.abs().max() > 0.01


def test_a_walk_that_writes_nothing_sees_no_difference_and_leaves_the_model() -> None:
    model = tiny("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for block in stream_beside_dense(decoder_of(model), BATCHES, range(2), edited=True, label="test"):
        for group in block.groups:
            found = block.difference(group)
            assert not found.shift.any() and (found.drift is None or not found.drift.any())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_blocks_in_front_of_the_scope_are_passed() -> None:
    model = tiny("llama")
    blocks = list(stream_beside_dense(decoder_of(model), BATCHES, range(1, 2), edited=True, label="test"))
    assert [block.index for block in blocks] == [1]


def test_memory_that_runs_out_halves_the_windows_of_both_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = tiny("llama"), tiny("llama")
    decoder = decoder_of(model)
    sites = dict.fromkeys(linears(model, decoder.modules), pattern("0.5"))
    whole, halved = Witness(), Witness()
    prune(decoder, BATCHES, range(2), whole, sites)
    block = decoder_of(other).modules[1]
    own = block.forward

    def narrow(hidden: Tensor, **named: Any) -> Any:
        if len(hidden) > 1:
            raise torch.OutOfMemoryError("made up")
        return own(hidden, **named)

    monkeypatch.setattr(block, "forward", narrow)
    prune(decoder_of(other), BATCHES, range(2), halved, sites)
    for site, found in whole.shown.items():
        torch.testing.assert_close(halved.shown[site].shift, found.shift, rtol=1e-4, atol=1e-5)
