"""What blocks are shown, against running the whole, partly pruned model; and how often anything runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from helpers import METHODS, TINY, everything, given_tokens, linears, normal, pattern, seen_by, tiny, windows
from torch import Tensor, nn

from harness.calibration.views.model import LiveModelView
from harness.calibration.walk.batches import TOKENS_PER_BATCH, batched
from harness.calibration.walk.blocks import stream
from harness.calibration.walk.stream import Stream
from harness.compress import prune
from harness.core.component import completed
from harness.core.interfaces import Pruned
from harness.core.pattern import Pattern
from harness.core.statistic import gram, squared_norms
from harness.methods.magnitude import Magnitude
from harness.methods.sparsegpt import SparseGPT
from harness.methods.wanda import Wanda
from harness.models.decoder import decoder_of
from harness.models.pieces import first
from harness.runtime.errors import Failure

BATCHES = [windows(3), windows(3, seed=1), windows(2, seed=2)]
"""Windows in batches, the last one of another size."""


@partial(completed, "method")
class Witness:
    """Magnitude by rows that writes down the inputs of every site it is shown."""

    statistic = everything

    def __init__(self) -> None:
        self.shown: list[Tensor] = []

    def prune(self, weight: Tensor, seen: Any, asked: Pattern) -> Pruned:
        self.shown.append(seen)
        return Magnitude("row").prune(weight, None, asked)


def whole_model_inputs(model: nn.Module, sites: list[str]) -> dict[str, Tensor]:
    """The inputs of sites when the whole model runs on all windows."""
    caught: dict[str, list[Tensor]] = {site: [] for site in sites}

    def catch(site: str) -> Any:
        return lambda _, positional: caught[site].append(positional[0].detach().flatten(0, -2))

    handles = [model.get_submodule(site).register_forward_pre_hook(catch(site)) for site in sites]
    with torch.no_grad():
        for batch in BATCHES:
            model(batch, use_cache=False)
    for handle in handles:
        handle.remove()
    return {site: torch.cat(seen) for site, seen in caught.items()}


@contextmanager
def counted(blocks: Iterable[nn.Module]) -> Iterator[Counter[int]]:
    """How often each block ran to its end."""
    calls: Counter[int] = Counter()

    def count(index: int) -> Any:
        return lambda *_: calls.update([index])

    handles = [block.register_forward_hook(count(index)) for index, block in enumerate(blocks)]
    yield calls
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("name", TINY)
def test_each_block_sees_the_model_as_pruned_so_far(name: str) -> None:
    """Brute force: block k's inputs are those of the whole model whose blocks before k are pruned, the rest dense."""
    model, partly = tiny(name), tiny(name)
    decoder, witness = decoder_of(model), Witness()
    decoder_of(partly)
    sites = list(linears(model, decoder.modules))
    prune(decoder, BATCHES, range(2), witness, dict.fromkeys(sites, pattern("0.5")))
    order = [site for index in range(2) for site in decoder.linears(index)]
    shown = dict(zip(order, witness.shown, strict=True))
    for index in range(2):
        in_block = list(decoder.linears(index))
        for site, expected in whole_model_inputs(partly, in_block).items():
            torch.testing.assert_close(shown[site], expected, rtol=1e-4, atol=1e-5, msg=lambda m, s=site: f"{s}: {m}")
        for site in in_block:
            partly.get_submodule(site).weight.copy_(model.get_submodule(site).weight)


@pytest.mark.parametrize("together", [None, 1])
def test_arguments_that_follow_from_tokens_are_those_of_each_batch(together: int | None) -> None:
    """A model whose blocks are called with embeddings of the tokens: the second batch's are not the first one's."""
    model = given_tokens(tiny("llama"), 0, 1)
    state = Stream(decoder_of(model), BATCHES)
    assert state.follows_tokens
    state._together = together
    for hidden, tokens in zip(state.hidden, BATCHES, strict=True):
        for index in range(2):
            hidden = state.run_block(index, hidden, tokens)
        torch.testing.assert_close(state.logits(hidden), model(tokens, use_cache=False).logits, rtol=1e-4, atol=1e-4)


def test_inputs_of_a_model_whose_arguments_follow_from_tokens() -> None:
    """What a walk shows is what the whole model computes."""
    model = given_tokens(tiny("llama"), 0, 1)
    expected = whole_model_inputs(model, list(linears(model, model.model.layers)))
    for block in stream(decoder_of(model), BATCHES, range(2), edited=False, label=""):
        for site, seen in block.observe(everything).items():
            torch.testing.assert_close(seen, expected[site], rtol=1e-4, atol=1e-4)


def test_arguments_are_shared_where_they_do_not_follow_from_tokens() -> None:
    """One list of arguments for each shape of batch, however many batches there are."""
    for name in TINY:
        model = tiny(name)
        state = Stream(decoder_of(model), BATCHES)
        assert not state.follows_tokens and not state._of_tokens and len(state._arguments) == SHAPES


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "qwen2", "mistral"])
def test_sliding_windows_matter_here(name: str) -> None:
    """The models above do tell a sliding window from a full one: without it, the second block sees something else."""
    settings = {"layer_types": ["full_attention"] * 2} if "layer_types" in TINY[name] else {"sliding_window": None}
    narrow, wide = tiny(name), tiny(name, **settings)
    site = next(iter(decoder_of(wide).linears(1)))
    inputs = [whole_model_inputs(model, [site])[site] for model in (narrow, wide)]
    assert not torch.allclose(*inputs, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", ["llama", "gemma2", "opt"])
def test_the_probe_sees_the_dense_model(name: str) -> None:
    model = tiny(name)
    view = LiveModelView(decoder_of(model), BATCHES, range(2))
    for block in view.observe(everything):
        expected = whole_model_inputs(model, list(block.weights))
        for site, seen in block.observe(everything).items():
            torch.testing.assert_close(seen, expected[site], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("split", [[8], [1] * 8, [5, 3], [3, 3, 2]])
@pytest.mark.parametrize("name", ["llama", "opt"])
def test_how_windows_are_batched_does_not_matter(name: str, split: list[int]) -> None:
    model, tokens = tiny(name), torch.cat(BATCHES)
    view = LiveModelView(decoder_of(model), tokens.split(split), range(2))
    for block in view.observe(gram):
        expected = whole_model_inputs(model, list(block.weights))
        squares, grams = block.observe(squared_norms), block.observe(gram)
        for site, dense in expected.items():
            assert grams[site].windows == squares[site].windows == 8
            torch.testing.assert_close(grams[site].matrix, dense.T @ dense / 4, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(squares[site].mean_sq, dense.square().sum(0) / 8, rtol=1e-4, atol=1e-4)


def test_batches_are_of_about_4096_tokens() -> None:
    assert [len(batch) for batch in batched(windows(20, 512))] == [8, 8, 4]
    assert [len(batch) for batch in batched(windows(2, 64)[:, :1].expand(2, TOKENS_PER_BATCH + 1))] == [1, 1]
    assert torch.equal(torch.cat(batched(windows(20, 512))), windows(20, 512))


SHAPES = len({batch.shape for batch in BATCHES})
"""The arguments of blocks are caught in one whole forward per batch shape."""


def test_a_dense_probe_runs_each_block_once_a_batch() -> None:
    model = tiny("llama")
    view = LiveModelView(decoder_of(model), BATCHES, range(2))
    with counted(model.model.layers) as calls:
        for block in view.observe(squared_norms):
            block.observe(squared_norms)
    assert calls == {0: len(BATCHES) + SHAPES, 1: len(BATCHES) + SHAPES}


@pytest.mark.parametrize("method", [Wanda(), SparseGPT()], ids=["wanda", "sparsegpt"])
def test_pruning_runs_each_block_to_its_end_once_a_batch(method: Any) -> None:
    """To move on; to observe, it runs to the last input only. The last block has nobody to move on to."""
    model = tiny("llama", num_hidden_layers=3)
    decoder = decoder_of(model)
    allocation = dict.fromkeys(linears(model, model.model.layers), pattern("0.5"))
    with counted(model.model.layers) as calls, counted([block.mlp.down_proj for block in model.model.layers]) as downs:
        prune(decoder, BATCHES, range(3), method, allocation)
    assert calls == {0: len(BATCHES) + SHAPES, 1: len(BATCHES) + SHAPES, 2: SHAPES}
    assert downs == {0: len(BATCHES) + SHAPES, 1: len(BATCHES)}, "arguments are caught with the first block alone"


def test_outside_the_scope_blocks_run_once_or_not_at_all() -> None:
    model = tiny("llama", num_hidden_layers=4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    allocation = {site: pattern("0.5") for site in linears(model, model.model.layers) if ".layers.1." in site}
    with counted(model.model.layers) as calls:
        done = prune(decoder_of(model), BATCHES, range(1, 2), Wanda(), allocation)
    assert calls == {0: len(BATCHES) + SHAPES, 1: SHAPES, 2: SHAPES, 3: SHAPES}
    assert set(done) == set(allocation)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {f"{site}.weight" for site in allocation}


def test_magnitude_runs_nothing() -> None:
    model = tiny("opt")
    blocks = model.model.decoder.layers
    with counted(blocks) as calls:
        prune(decoder_of(model), [], range(2), Magnitude(), dict.fromkeys(linears(model, blocks), pattern("0.5")))
    assert not calls
    with pytest.raises(Failure, match="observes inputs and does not say so: a method has to name its statistic"):
        next(iter(stream(decoder_of(model), [], range(2), edited=True, label=""))).observe(gram)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_a_write_after_observing_is_seen_by_the_next_block(family: str) -> None:
    """A dense walk in which somebody writes all the same: the outputs of before no longer hold."""
    model = tiny(family)
    walk = stream(decoder_of(model), BATCHES, range(2), edited=False, label="")
    block = next(walk)
    block.observe(gram)
    for site, weight in block.weights.items():
        block.write(site, 0.5 * weight)
    later = next(walk)
    expected = whole_model_inputs(model, list(later.weights))
    for site, seen in later.observe(everything).items():
        torch.testing.assert_close(seen, expected[site], rtol=1e-4, atol=1e-5)


def test_the_probe_knows_its_scope() -> None:
    model = tiny("llama")
    view = LiveModelView(decoder_of(model), BATCHES, range(1, 2))
    assert [site.split(".")[2] for site in view.shapes] == ["1"] * 7
    assert view.blocks == (tuple(view.shapes),)
    assert view.shapes["model.layers.1.mlp.down_proj"] == (32, 56)
    assert [block.index for block in view.observe(gram)] == [1]


def test_all_methods_say_what_they_observe() -> None:
    """A statistic of made-up inputs is what `prune` takes: nothing else is handed over."""
    for method in METHODS.values():
        statistic = getattr(method, "statistic", None)
        assert (seen_by(statistic, normal(5, 8)) is None) == (statistic is None)


def test_outputs_in_any_wrapping() -> None:
    tensor = normal(1, 2, 3)
    assert first(tensor) is tensor and first((tensor, None)) is tensor and first([tensor]) is tensor
    with pytest.raises(AssertionError):
        first((None, tensor))
