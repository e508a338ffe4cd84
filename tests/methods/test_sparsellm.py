"""SparseLLM on tiny models: what the first epoch is, what the later ones do, when they are given up, what they hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers import TINY, pattern, tiny, windows
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness import catalogue
from harness.compress import prune
from harness.core.interfaces import Pruned
from harness.core.linalg import Inverse, damped_inverse
from harness.core.statistic import gram
from harness.methods.admm import ADMM
from harness.methods.alps import ALPS
from harness.methods.magnitude import Magnitude
from harness.methods.sparsegpt import SparseGPT
from harness.methods.sparsellm import SparseLLM
from harness.methods.sparsellm.problem import Problem
from harness.methods.wanda import Wanda
from harness.models.decoder import decoder_of
from harness.runtime.errors import Refusal, UserError
from harness.runtime.memory import OffloadableTensors

SHAPES = ["llama", "gemma", "opt", "opt-350m", "phi", "phi3"]


def pruned(name: str, method: Any, asked: str = "0.7", count: int = 8, length: int = 24, **changes: Any) -> Any:
    """The weights of a tiny model after pruning, and what the method told about its blocks."""
    model = tiny(name, **changes)
    decoder = decoder_of(model)
    told: dict[str, Any] = {}
    depth = len(decoder.modules)
    sites = [site for index in range(depth) for site in decoder.linears(index)]
    batches = [windows(count, length)]
    done = prune(decoder, batches, range(depth), method, dict.fromkeys(sites, pattern(asked)), told)
    return {site: model.get_submodule(site).weight for site in sites}, told, done


INNER = [SparseGPT(), Wanda(), Magnitude(), ALPS(), ADMM(), catalogue.build("method", {"name": "wanda", "refit": True})]


@pytest.mark.parametrize("inner", INNER, ids=["sparsegpt", "wanda", "magnitude", "alps", "admm", "wanda refit"])
@pytest.mark.parametrize("name", SHAPES)
def test_one_epoch_is_the_inner_method(name: str, inner: Any) -> None:
    alone, _, _ = pruned(name, inner)
    ours, told, _ = pruned(name, SparseLLM(inner=inner, epochs=1))
    assert all(torch.equal(ours[site], alone[site]) for site in alone)
    assert [len(facts["loss"]) for facts in told.values()] == [1, 1]


@pytest.mark.parametrize(
    ("name", "inner", "asked"),
    [(name, SparseGPT(), "0.5") for name in (*SHAPES, "gpt_neox")]
    + [(name, inner, "2of4") for name in ("llama", "opt") for inner in INNER],
)
def test_later_epochs_bring_the_outputs_closer(name: str, inner: Any, asked: str) -> None:
    _, told, done = pruned(name, SparseLLM(inner=inner, fallback=False), asked, count=12)
    first, last = (sum(facts["loss"][epoch] for facts in told.values()) for epoch in (0, -1))
    assert last < 0.97 * first
    assert all(facts["coupling"] == sorted(facts["coupling"], reverse=True) for facts in told.values())
    assert not any(result.note for result in done.values())


@pytest.mark.parametrize("name", TINY)
def test_the_part_is_what_the_model_computes(name: str) -> None:
    """Its description gives the outputs of the block's own module."""
    model = tiny(name)
    decoder = decoder_of(model)
    part = decoder.feed_forward(1)
    caught: dict[str, Tensor] = {}
    for site in part.sites:
        keep = lambda module, given, output, site=site: caught.update({site: (given[0], output.clone())})  # noqa: E731
        model.get_submodule(site).register_forward_hook(keep)
    model(windows(1))
    x, y = caught[part.readers[0]][0].reshape(-1, 32), caught[part.down][1].reshape(-1, 32)
    dense = {site: model.get_submodule(site).weight for site in part.sites}
    problem = Problem(part, dense, {}, SparseGPT(), (1, 1, 1), OffloadableTensors(x.device), None, None)
    hidden = problem.hidden(*problem.before_activation(x, dense))
    torch.testing.assert_close(problem.target(hidden), y - part.biases.get(part.down, 0), rtol=1e-4, atol=1e-4)


def test_the_loss_is_that_of_the_block_as_it_is_left() -> None:
    """Told is the mean squared error of the part's outputs over all tokens, here computed by the modules themselves."""
    dense, sparse = tiny("opt"), tiny("opt")
    decoder = decoder_of(sparse)
    told: dict[str, Any] = {}
    sites = list(decoder.linears(0))
    seen: list[Tensor] = []
    dense.model.decoder.layers[0].fc1.register_forward_hook(lambda _, given, output: seen.append(given[0]))
    dense(windows(6))
    method = SparseLLM(fallback=False)
    prune(decoder_of(sparse), [windows(6)], range(1), method, dict.fromkeys(sites, pattern("0.7")), told)
    part = [model.model.decoder.layers[0] for model in (dense, sparse)]
    y, ours = (block.fc2(block.fc1(seen[0]).relu()) for block in part)
    assert told["0"]["loss"][-1] == pytest.approx(float((ours - y).square().mean()), rel=1e-4)


@dataclass(frozen=True)
class Failing:
    """An inner method that is SparseGPT until a matrix of F inputs comes once too often; then all of it is `value`."""

    value: float
    seen: list[int]
    times: int = 1

    statistic = gram

    def for_part(self, part: str) -> Failing:
        return self

    def prune(self, weight: Tensor, seen: Any, wanted: Any) -> Pruned:
        result = SparseGPT().prune(weight, seen, wanted)
        if weight.shape[1] == 56:
            self.seen.append(1)
            if len(self.seen) > self.times:
                return Pruned(torch.full_like(weight, self.value), torch.ones_like(result.kept))
        return result


@pytest.mark.parametrize("value", [50.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["llama", "opt"])
def test_a_block_that_got_worse_keeps_the_inner_method(name: str, value: float) -> None:
    alone, _, _ = pruned(name, SparseGPT(), num_hidden_layers=1)
    ours, told, done = pruned(name, SparseLLM(inner=Failing(value, [])), num_hidden_layers=1)
    assert all(torch.equal(ours[site], alone[site]) for site in alone)
    assert told["0"]["fallback"] is True
    (note,) = [result.note for result in done.values() if result.note]
    assert note.startswith("kept the first epoch's weights: its loss was ")


def test_the_fallback_can_be_switched_off() -> None:
    ours, told, done = pruned("llama", SparseLLM(inner=Failing(50.0, []), fallback=False), num_hidden_layers=1)
    assert told["0"]["fallback"] is False and told["0"]["loss"][-1] > told["0"]["loss"][0]
    assert (ours["model.layers.0.mlp.down_proj"] == 50).all() and not any(result.note for result in done.values())


@pytest.mark.parametrize("fallback", [True, False])
def test_a_better_epoch_before_the_failure_is_kept(fallback: bool) -> None:
    two, _, _ = pruned("llama", SparseLLM(epochs=2), num_hidden_layers=1)
    method = SparseLLM(inner=Failing(float("nan"), [], 2), fallback=fallback)
    ours, told, _ = pruned("llama", method, num_hidden_layers=1)
    assert all(torch.equal(ours[site], two[site]) for site in two)
    assert told["0"]["fallback"] is False and told["0"]["loss"][1] < told["0"]["loss"][0]
    assert told["0"]["loss"][2:] == [None] and told["0"]["ended"] == "the error after epoch 3 is not finite"


def test_a_damping_that_was_raised_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def stubborn(matrix: Tensor, damping: float) -> Inverse:
        return damped_inverse(matrix, 10 * damping if len(matrix) == 56 else damping)  # as after one failure, for p

    monkeypatch.setattr("harness.core.statistic.damped_inverse", stubborn)
    _, told, _ = pruned("llama", SparseLLM(epochs=3), num_hidden_layers=1)
    assert told["0"]["raised"] == [f"epoch {n}, model.layers.0.mlp.down_proj: 0.1" for n in (2, 3)]


def test_without_fallback_the_last_finite_weights_stay() -> None:
    ours, told, _ = pruned("llama", SparseLLM(inner=Failing(float("nan"), []), fallback=False), num_hidden_layers=1)
    assert all(torch.isfinite(weight).all() for weight in ours.values())
    assert told["0"]["loss"][-1] is None and told["0"]["loss"][0] > 0


@pytest.mark.parametrize("length", [2, 24])
@pytest.mark.parametrize("name", SHAPES)
def test_few_tokens_and_little_left_stay_finite(name: str, length: int) -> None:
    """One window, fewer tokens than inputs, 90 %: Gram matrices without full rank everywhere."""
    ours, told, _ = pruned(name, SparseLLM(), "0.9", count=1, length=length)
    assert all(torch.isfinite(weight).all() for weight in ours.values())
    assert all(loss is not None for facts in told.values() for loss in facts["loss"])


def test_dead_inputs_lose_their_weights() -> None:
    """Neurons that never fire (a bias far below zero) are dead columns of fc2."""
    model = tiny("opt")
    for block in model.model.decoder.layers:
        block.fc1.bias[:5] = -1e4
    decoder = decoder_of(model)
    sites = [site for index in range(2) for site in decoder.linears(index)]
    prune(decoder, [windows(8)], range(2), SparseLLM(epochs=1), dict.fromkeys(sites, pattern("0.5")))
    assert all((block.fc2.weight[:, :5] == 0).all() for block in model.model.decoder.layers)
    again = tiny("opt")
    for block in again.model.decoder.layers:
        block.fc1.bias[:5] = -1e4
    prune(decoder_of(again), [windows(8)], range(2), SparseLLM(), dict.fromkeys(sites, pattern("0.5")))
    assert all(torch.isfinite(parameter).all() for parameter in again.parameters())


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation gives."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.size = max([self.size, *sizes])
        return result


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_no_intermediate_grows_with_the_number_of_windows(name: str) -> None:
    """Beside the inputs that the stream itself holds: windows come one by one, and p of one window lives at a time."""
    sizes = []
    for count in (4, 16):
        model = tiny(name)
        decoder = decoder_of(model)
        sites = list(decoder.linears(0))
        with Largest() as largest:
            batches = list(windows(count).split(1))
            prune(decoder, batches, range(1), SparseLLM(), dict.fromkeys(sites, pattern("0.7")))
        sizes.append(largest.size)
    assert sizes[0] == sizes[1]


def test_sixteen_bits_stay_sixteen_bits() -> None:
    model = tiny("llama", torch.bfloat16)
    sites = list(decoder_of(model).linears(0))
    told: dict[str, Any] = {}
    allocation: Mapping[str, Any] = dict.fromkeys(sites, pattern("2of4"))
    prune(decoder_of(model), [windows(4)], range(1), SparseLLM(), allocation, told)
    assert {model.get_submodule(site).weight.dtype for site in sites} == {torch.bfloat16}
    assert told["0"]["loss"][-1] < told["0"]["loss"][0]


def test_wrong_settings_are_said_to_be() -> None:
    for settings, said in (
        ({"epochs": 0}, "method.epochs=0 has to be at least 1"),
        ({"alpha": -1.0}, "have to be above 0"),
        ({"damping": 0.0}, "have to be above 0"),
        ({"inner": SparseLLM()}, "has to prune one matrix at a time"),
        ({"variant": "released", "inner": Wanda()}, "prunes with method.inner=sparsegpt"),
    ):
        with pytest.raises(UserError, match=said):
            SparseLLM(**settings)
    with pytest.raises(Refusal, match="gated feed-forward parts and those with ReLU only"):
        pruned("phi", SparseLLM(variant="released"))
    assert "blocksize=6" in str(SparseLLM(inner=SparseGPT(blocksize=6)).refuses(pattern("2of4"), (4, 12)))


def test_what_waits_on_its_device_is_the_same_tensor() -> None:
    offloadable = OffloadableTensors(torch.device("cpu"))
    first, second = torch.ones(3), torch.zeros(3)
    offloadable.append(first).append(second)
    offloadable[1] = first
    assert len(offloadable) == 2 and offloadable[0] is first and all(tensor is first for tensor in offloadable)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_what_finds_no_room_waits_in_host_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.runtime.memory.ROOM", 2.0)
    offloadable = OffloadableTensors(torch.device("cuda", 0)).append(torch.ones(3, device="cuda"))
    offloadable[0] = torch.full((3,), 2.0, device="cuda")
    assert not offloadable._tensors[0].is_cuda and offloadable[0].is_cuda and offloadable[0].tolist() == [2, 2, 2]


def test_relu_is_recognised() -> None:
    """The closed form for ReLU is used where the family's activation is torch's own module."""
    assert isinstance(decoder_of(tiny("opt")).feed_forward(0).activation, nn.ReLU)


@pytest.mark.parametrize(("name", "inputs"), [("llama", 4), ("opt", 4)])
def test_an_epoch_makes_no_spectrum_twice(name: str, inputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block has one for each of its inputs, and every later epoch one more, of the new inputs of `down`."""
    made, eigh = [], torch.linalg.eigh

    def counted(matrix: Tensor) -> Any:
        made.append(matrix.shape)
        return eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", counted)
    _, told, _ = pruned(name, SparseLLM(inner=ALPS(), epochs=3))
    assert len(made) == len(told) * (inputs + 2)
