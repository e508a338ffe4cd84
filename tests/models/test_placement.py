"""A model whose blocks wait in host memory, or are shared out, against the same model on one device."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from helpers import TINY, linears, pattern, tiny, windows
from torch import Tensor

from harness.calibration.derivatives.curvature import fisher_trace, hessian_trace
from harness.calibration.views.model import LiveModelView
from harness.calibration.walk.blocks import stream
from harness.compress import prune
from harness.core.interfaces import Database
from harness.core.pattern import Unstructured
from harness.core.statistic import gram
from harness.evaluation.perplexity import mean_nll
from harness.evaluation.zeros import achieved_sites, fraction_of_zeros
from harness.methods.magnitude import Magnitude
from harness.methods.sparsegpt import SparseGPT
from harness.methods.sparsellm import SparseLLM
from harness.methods.wanda import Wanda
from harness.models.decoder import decoder_of
from harness.models.placement import Placement, Where, place, placement_of
from harness.runtime.memory import OffloadableTensors

CPU = torch.device("cpu")
BATCHES = [windows(3), windows(3, seed=1), windows(2, seed=2)]
TEXT = windows(5, seed=7)


def placed(name: str = "llama", blocks: int = 3, **where: Any) -> tuple[Any, Placement]:
    """A tiny model in its place; on a CPU the device's copies are copies all the same."""
    layers = (
        {"layer_types": [*TINY[name]["layer_types"], "full_attention"][:blocks]} if "layer_types" in TINY[name] else {}
    )
    model = tiny(name, num_hidden_layers=blocks, **layers)
    return model, place(decoder_of(model), Where(CPU, **where))


def state(model: Any) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def pruned(method: Any, **where: Any) -> tuple[dict[str, Tensor], float, dict[str, Any]]:
    """Weights, loss on a text and achieved zeros of a model pruned in its place."""
    model, _ = placed(**where)
    decoder = decoder_of(model)
    allocation = dict.fromkeys(linears(model, decoder.modules), pattern("0.6"))
    prune(decoder, BATCHES, range(3), method, allocation)
    return state(model), mean_nll(decoder_of(model), TEXT, CPU), achieved_sites(decoder, range(3), allocation)


METHODS = {"wanda": Wanda(), "sparsegpt": SparseGPT(), "magnitude": Magnitude(), "sparsellm": SparseLLM(epochs=2)}


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt", "phi3"])
@pytest.mark.parametrize("method", METHODS)
def test_where_blocks_wait_changes_no_bit(family: str, method: str) -> None:
    resident, loss, zeros = pruned(METHODS[method], name=family)
    waiting, same_loss, same_zeros = pruned(METHODS[method], name=family, offload=True)
    assert resident.keys() == waiting.keys() and all(torch.equal(resident[key], waiting[key]) for key in resident)
    assert same_loss == loss and same_zeros == zeros


@pytest.mark.parametrize("name", TINY)
def test_a_waiting_model_runs_whole(name: str) -> None:
    """As zero-shot tasks run it: nobody knows that its blocks come and go."""
    model, placement = placed(name, blocks=2, offload=True)
    assert placement.offloaded and torch.equal(model(BATCHES[0]).logits, tiny(name)(BATCHES[0]).logits)
    assert fraction_of_zeros(decoder_of(model), None) == 0


def test_two_blocks_are_on_the_device_and_their_matrices_are_elsewhere() -> None:
    model, placement = placed(blocks=4, offload=True)
    blocks, visits = model.model.layers, placement._visits
    sizes = [sum(p.nbytes for p in block.parameters() if p.dim() > 1) for block in blocks]
    assert visits is not None and [slot.flat.nbytes for slot in visits._slots] == [-(-sizes[0] // 512) * 512] * 2
    home = blocks[1].mlp.up_proj.weight.data_ptr()
    with placement.on_device(blocks[1]):
        buffers = [slot.flat for slot in visits._slots]
        inside = blocks[1].mlp.up_proj.weight.data_ptr()
        assert any(flat.data_ptr() <= inside < flat.data_ptr() + flat.nbytes for flat in buffers)
        assert {slot.block for slot in visits._slots} == {blocks[1], blocks[2]}  # the next one is on its way
    assert blocks[1].mlp.up_proj.weight.data_ptr() == home


def test_blocks_are_copied_once_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model, placement = placed(blocks=4, offload=True)
    fetched: list[int] = []
    visits = placement._visits
    assert visits is not None
    original = visits._copy_streams.fetch

    def counted(pairs: Any, after: Any) -> Any:
        fetched.append(len(pairs))
        return original(pairs, after)

    monkeypatch.setattr(visits._copy_streams, "fetch", counted)
    decoder = decoder_of(model)
    allocation = dict.fromkeys(linears(model, model.model.layers), pattern("0.5"))
    prune(decoder, BATCHES, range(4), Wanda(), allocation)
    shapes = len({batch.shape for batch in BATCHES})
    assert len(fetched) == 4 + shapes  # block 0 runs once a shape before, to show what blocks are called with
    fetched.clear()
    mean_nll(decoder_of(model), windows(300), CPU)
    assert len(fetched) == 4 + 2  # two shapes of batches, however many there are


def test_what_is_not_written_is_not_sent_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model, placement = placed(offload=True)
    assert placement._visits is not None
    monkeypatch.setattr(placement._visits._copy_streams, "send", lambda *_: pytest.fail("nothing was written"))
    for block in LiveModelView(decoder_of(model), BATCHES, range(3)).observe(gram):
        block.observe(gram)


def test_weights_are_asked_for_where_the_device_is() -> None:
    model, _ = placed(offload=True)
    view = LiveModelView(decoder_of(model), BATCHES, range(3))
    dense = linears(model, model.model.layers)
    assert list(view.weights) == list(view.shapes)
    assert all(torch.equal(view.weights[site], dense[site].weight) for site in view.weights)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_curvature_and_searches_of_a_waiting_model(family: str) -> None:
    found = []
    for offload in (False, True):
        model, _ = placed(family, offload=offload)
        decoder = decoder_of(model)
        before = state(model)
        view = LiveModelView(decoder, BATCHES, range(1, 3), method=Wanda())
        levels = [Unstructured(0.0), Unstructured(0.5)]
        assembler = view.assembler(
            SparseGPT(), dict.fromkeys(view.shapes, levels), inputs=dict.fromkeys(view.shapes, levels[1]), windows=2,
            objective="kl", database=Database(),
        )  # fmt: skip
        mixed = {site: levels[number % 2] for number, site in enumerate(view.shapes)}
        losses = assembler.losses([mixed, dict.fromkeys(view.shapes, levels[1])])
        walked = [
            block.observe(gram)[site].matrix.sum().item()
            for block in view.pruned(Wanda(), dict.fromkeys(view.shapes, levels[1]))
            for site in block.weights
        ]
        traces = (
            fisher_trace(decoder, TEXT, range(1, 3)),
            hessian_trace(decoder, TEXT[:2], range(1, 3), 1, "rademacher", 0),
        )
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        found.append((losses, walked, str(traces)))
    assert found[0] == found[1]


def test_a_walk_that_is_left_leaves_the_weights_to_be_read() -> None:
    model, _ = placed(offload=True)
    walk = stream(decoder_of(model), BATCHES, range(3), edited=True, label="")
    block = next(walk)
    site = next(iter(block.weights))
    block.write(site, torch.zeros_like(block.weights[site]))
    del walk
    assert not model.get_submodule(site).weight.any()


def test_a_planner_may_drop_blocks_of_a_waiting_model() -> None:
    outputs = []
    for where in ({}, {"offload": True}, {"others": [CPU]}):
        model, _ = placed(blocks=4, **where)
        mean_nll(decoder_of(model), TEXT, CPU)  # with the replicas of the whole model
        del model.model.layers[1]
        model.config.num_hidden_layers = 3
        outputs.append(mean_nll(decoder_of(model), TEXT, CPU))
    assert outputs[0] == outputs[1] == outputs[2]


def test_nothing_outlives_its_model() -> None:
    model, _ = placed(offload=True, others=[CPU])
    mean_nll(decoder_of(model), TEXT, CPU)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma2", "opt"])
@pytest.mark.parametrize("method", METHODS)
def test_several_devices_see_what_one_sees(family: str, method: str, offload: bool) -> None:
    """Masks may differ where two scores nearly tie, as sums are added in another order: here none do."""
    alone, loss, zeros = pruned(METHODS[method], name=family)
    shared, shared_loss, shared_zeros = pruned(METHODS[method], name=family, others=[CPU, CPU], offload=offload)
    for key, weight in alone.items():
        torch.testing.assert_close(shared[key], weight, rtol=2e-3, atol=2e-4)
    assert shared_loss == pytest.approx(loss, rel=1e-3) and shared_zeros == zeros


@pytest.mark.parametrize("offload", [False, True])
def test_perplexity_does_not_depend_on_the_number_of_devices(offload: bool, monkeypatch: Any) -> None:
    monkeypatch.setattr("harness.calibration.walk.batches.TOKENS_PER_BATCH", 48)  # batches of two windows
    losses = {mean_nll(decoder_of(placed(**where)[0]), windows(9), CPU) for where in (
        {}, {"offload": offload}, {"offload": offload, "others": [CPU]}, {"offload": offload, "others": [CPU] * 7},
    )}  # fmt: skip
    assert len(losses) == 1


def test_every_device_has_its_share_and_more_devices_than_batches_stay_idle() -> None:
    model, placement = placed(others=[CPU] * 5)
    decoder = decoder_of(model)
    for block in LiveModelView(decoder, BATCHES, range(3)).observe(gram):
        states = block.observe(gram)
        assert {state.windows for state in states.values()} == {8}
    assert len(placement._replicas) == 2


def test_a_statistic_that_cannot_be_merged_is_seen_by_one_device() -> None:
    from helpers import everything

    seen = []
    for others in ([], [CPU]):
        model, _ = placed(others=others)
        view = LiveModelView(decoder_of(model), BATCHES, range(3))
        seen.append([block.observe(everything) for block in view.observe(everything)])
    for alone, shared in zip(*seen, strict=True):
        assert alone.keys() == shared.keys() and all(torch.equal(alone[site], shared[site]) for site in alone)


def test_activations_wait_where_they_are_told_to() -> None:
    tensors = [torch.full((2, 3), float(number)) for number in range(5)]
    offloadable = OffloadableTensors(CPU, tensors, on_host=True)
    assert offloadable.waiting == 5 and all(here is not there for here, there in zip(offloadable, tensors, strict=True))
    for index, tensor in enumerate(offloadable):
        offloadable[index] = tensor + 1
    offloadable[4] = torch.zeros(7)  # of another shape
    assert [tensor.sum().item() for tensor in offloadable] == [6, 12, 18, 24, 0] and offloadable.elements == 31
    assert OffloadableTensors(CPU, tensors).waiting == 0 and list(OffloadableTensors(CPU)) == []


def test_a_model_that_nobody_placed_is_where_it_is() -> None:
    model = tiny("llama")
    placement = placement_of(decoder_of(model))
    assert placement.device == CPU and not placement.offloaded and not placement.others
