"""Cutting a model: its logits are those of gates, to the bit; it goes on generating; what cannot be is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import METHODS, TINY, normal, pattern, tiny, windows
from torch import Tensor, nn

from harness.calibration.walk.checks import self_check
from harness.compress import prune
from harness.core.structure import Cut, Plan, Unit
from harness.evaluation.zeros import fraction_of_zeros
from harness.models.decoder import Decoder, decoder_of
from harness.models.gates import gated
from harness.models.placement import Where, place
from harness.models.surgery import operate
from harness.models.units import channels, heads
from harness.runtime.errors import Refusal

BLOCKS = 4


def dense(name: str, *, relu: bool = True, **changes: Any) -> Decoder:
    """A tiny decoder of four blocks, with masks that differ where the family's do.

    With ReLU, the result of which does not depend on where a number stands: a CPU rounds the exponential otherwise in
    the last elements of a tensor, which vectors do not fill.
    """
    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    types = {"layer_types": kinds} if "layer_types" in TINY[name] else {}
    model = tiny(name, num_hidden_layers=BLOCKS, **types | changes)
    decoder = decoder_of(model)
    for block in decoder.modules if relu else ():
        block.set_submodule(decoder.anatomy.activation, nn.ReLU())
    return decoder


def units(part: Any, gone: dict[int, Any]) -> Cut:
    return Cut(frozenset(Unit(part, block, index) for block, indices in gone.items() for index in indices))


ONE_IN_ALL = {block: [block % 2] for block in range(BLOCKS)}
CUTS = {
    "blocks": Cut.of_blocks([0, 2]),
    "attention of the first": units("attention", {0: [0]}),
    "attention of all": units("attention", {block: [0] for block in range(BLOCKS)}),
    "feed-forward parts": units("mlp", {0: [0], 3: [0]}),
    "heads": units("head", {0: [1], 2: [0]}),
    "a head of all": units("head", ONE_IN_ALL),
    "channels": units("channel", {0: [0, 5, 55], 1: range(40), 3: [7]}),
    "as many channels of all": units("channel", {block: [block, 9, 50] for block in range(BLOCKS)}),
    "all heads and all channels": units("head", {1: range(4)}) | units("channel", {2: range(56)}),
    "everything": Cut.of_blocks([1])
    | units("attention", {0: [0]})
    | units("mlp", {2: [0]})
    | units("head", {2: [1], 3: [0]})
    | units("channel", {0: [3, 4], 3: range(20)}),
}


def fitting(decoder: Decoder, cut: Cut) -> Cut:
    """The cut without heads that the model does not have, or that cannot go alone in its family."""
    count = {"head": heads(decoder, 0).groups if decoder.anatomy.heads_alone else 0, "channel": channels(decoder, 0)}
    return Cut(frozenset(unit for unit in cut.units if unit.index < count.get(unit.part, 1)))


def logits(decoder: Decoder, tokens: Tensor) -> Tensor:
    return decoder.model(tokens, use_cache=False).logits


@pytest.mark.parametrize("cut", CUTS.values(), ids=list(CUTS))
@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_a_cut_model_is_the_gated_one_and_generates_with_its_cache(name: str, cut: Cut) -> None:
    decoder, tokens = dense(name), windows(2)
    cut = fitting(decoder, cut)
    before, size = logits(decoder, tokens), decoder.model.num_parameters()
    with gated(decoder, cut):
        tried = logits(decoder, tokens)
    assert torch.equal(logits(decoder, tokens), before)
    smaller = operate(decoder, Plan(cut))
    assert bool(cut) != torch.equal(tried, before)
    assert torch.equal(logits(smaller, tokens), tried)
    assert bool(cut) == (smaller.model.num_parameters() < size)
    told = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    ahead = [smaller.model.generate(tokens[:, :10], use_cache=cached, **told) for cached in (True, False)]
    assert torch.equal(*ahead) and ahead[0].shape == (2, 16)
    whole = smaller.model(tokens, use_cache=True)
    step = smaller.model(tokens[:, :-1], use_cache=True).past_key_values
    last = smaller.model(tokens[:, -1:], past_key_values=step, use_cache=True).logits
    torch.testing.assert_close(last, whole.logits[:, -1:], rtol=1e-4, atol=1e-4)
    assert whole.past_key_values.get_seq_length() == tokens.shape[1]


@pytest.mark.parametrize("name", ["llama", "phi3"])
@torch.no_grad()
def test_the_familys_own_activation_moves_by_its_rounding_alone(name: str) -> None:
    decoder, tokens = dense(name, relu=False), windows(2)
    with gated(decoder, CUTS["everything"]):
        tried = logits(decoder, tokens)
    torch.testing.assert_close(logits(operate(decoder, Plan(CUTS["everything"])), tokens), tried, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "phi3", "opt", "gpt_neox", "gemma2"])
@torch.no_grad()
def test_cuts_one_after_the_other_are_one_cut(name: str) -> None:
    """Numbers are those of the dense model, whatever is gone by then; gates too."""
    cut, tokens = fitting(dense(name), CUTS["everything"]), windows(2)
    once, twice = operate(dense(name), Plan(cut)), dense(name)
    order = sorted(cut.units)
    for part in (order[::2], order[1::2]):
        with gated(twice, Cut(frozenset(part))):
            tried = logits(twice, tokens)
        twice = operate(twice, Plan(Cut(frozenset(part))))
        assert torch.equal(logits(twice, tokens), tried)
    assert torch.equal(logits(twice, tokens), logits(once, tokens)) and twice.cut == once.cut
    assert twice.indices == (0, 2, 3) and list(twice.linears(3)) == list(once.linears(3))
    assert not any(".mlp." in site or ".fc" in site for site in twice.linears(2))
    gone = operate(twice, Plan(cut))
    assert torch.equal(logits(gone, tokens), tried) and gone.cut == once.cut


@pytest.mark.parametrize("name", ["llama", "opt", "phi", "phi3", "gpt_neox"])
@torch.no_grad()
def test_a_channel_is_what_the_equation_says(name: str) -> None:
    """Zeroing the columns of the last matrix, by hand, is cutting what they read."""
    decoder, other, tokens = dense(name), dense(name), windows(2)
    block, layout = other.block(1), other.anatomy
    block.get_submodule(layout.mlp_output).weight[:, [2, 7]] = 0.0
    size, queries = heads(other, 1).size, heads(other, 1).queries
    block.get_submodule(layout.attention_output).weight[:, : size * queries] = 0.0
    smaller = operate(decoder, Plan(units("channel", {1: [2, 7]}) | units("head", {1: [0]})))
    assert torch.equal(logits(smaller, tokens), logits(other, tokens))


@pytest.mark.parametrize("name", ["llama", "opt", "gemma2"])
@torch.no_grad()
def test_biases_come_in_with_the_cut(name: str) -> None:
    """A bias in return for what is gone; of a sub-layer that is gone it is a constant in the residual stream."""
    decoder, tokens = dense(name), windows(2)
    layout, bias = decoder.anatomy, normal(32, seed=3)
    names = {(1, layout.attention_output): bias, (2, layout.mlp_output): -bias, (3, layout.attention_output): bias}
    cut = units("attention", {1: [0]}) | units("mlp", {2: [0]}) | Cut.of_blocks([0])
    tensors = {f"{layout.blocks}.{index}.{name}.bias": tensor for (index, name), tensor in names.items()}
    smaller = operate(decoder, Plan(cut, tensors))
    whole = dense(name)
    whole.block(3).get_submodule(layout.attention_output).bias = nn.Parameter(bias)
    whole.block(1).register_forward_pre_hook(lambda _, positional: (positional[0] + bias, *positional[1:]))
    whole.block(2).register_forward_hook(lambda _, __, output: output - bias)
    with gated(whole, cut):
        torch.testing.assert_close(logits(smaller, tokens), logits(whole, tokens), rtol=1e-5, atol=1e-5)
    assert set(smaller.linears(1)).isdisjoint(name.removesuffix(".bias") for name in tensors)


def test_a_configuration_says_what_all_blocks_have_in_common() -> None:
    even = units("head", ONE_IN_ALL) | units("channel", {block: [block] for block in range(BLOCKS)})
    config = operate(dense("gemma2"), Plan(even | Cut.of_blocks([1]))).config
    assert (config.num_hidden_layers, config.intermediate_size, config.head_dim) == (3, 55, 8)
    assert (config.num_attention_heads, config.num_key_value_heads) == (2, 1)
    assert config.layer_types == ["full_attention", "full_attention", "sliding_attention"]
    config = operate(dense("llama"), Plan(units("channel", {0: [1]}) | units("attention", {1: [0]}))).config
    assert (config.num_hidden_layers, config.intermediate_size, config.num_attention_heads) == (4, 56, 4)
    config = operate(dense("opt"), Plan(units("head", {block: [0] for block in range(BLOCKS)}))).config
    assert config.num_attention_heads == 4  # an OPT has as many as its hidden size holds


REFUSED = {
    "no such block": (Cut.of_blocks([4]), {}, "block 4 cannot go: the model has the blocks 0-3."),
    "a block below": (units("attention", {-1: [0]}), {}, "block -1 cannot go"),
    "no such head": (units("head", {0: [2]}), {}, "head 2 of block 0 cannot go: the block has the heads 0-1."),
    "no such channel": (units("channel", {3: [56]}), {}, "channel 56 of block 3 cannot go"),
    "experts": (units("expert", {0: [0]}), {}, "the model is no mixture of experts"),
    "all blocks": (Cut.of_blocks(range(4)), {}, "no block would be left of the 4 that the model has."),
    "all sub-layers": (
        Cut.of_blocks(range(3)) | units("head", {3: [0, 1]}) | units("channel", {3: range(56)}),
        {},
        "no block would be left",
    ),
    "a tensor of another shape": (
        units("channel", {0: [1]}),
        {"model.layers.0.mlp.down_proj.weight": torch.zeros(32, 56)},
        "no place for model.layers.0.mlp.down_proj.weight of shape (32, 56)",
    ),
    "a tensor of what is gone": (
        Cut.of_blocks([0]),
        {"model.layers.0.mlp.down_proj.bias": torch.zeros(32)},
        "no place for model.layers.0.mlp.down_proj.bias",
    ),
}


@pytest.mark.parametrize(("cut", "tensors", "said"), REFUSED.values(), ids=list(REFUSED))
def test_what_cannot_be_cut_is_refused_in_a_sentence(cut: Cut, tensors: Any, said: str) -> None:
    with pytest.raises(Refusal) as caught:
        operate(dense("llama"), Plan(cut, tensors))
    assert said in str(caught.value) and "\n" not in str(caught.value)
    if not tensors:
        with pytest.raises(Refusal), gated(dense("llama"), cut):
            pass


@pytest.mark.parametrize("method", METHODS)
def test_what_is_left_is_pruned_like_any_model(method: str) -> None:
    decoder = operate(dense("llama", relu=False), Plan(CUTS["everything"]))
    sites = [site for index in decoder.indices for site in decoder.linears(index)]
    self_check(decoder)
    done = prune(decoder, [windows(4)], decoder.indices, METHODS[method], dict.fromkeys(sites, pattern("0.5")))
    assert list(done) == sites and "model.layers.0.mlp.up_proj" in sites
    assert not {"model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj", "model.layers.2.mlp.up_proj"} & set(
        sites
    )
    assert fraction_of_zeros(decoder, decoder.indices) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("name", ["llama", "opt"])
@torch.no_grad()
def test_a_cut_model_whose_blocks_wait_in_host_memory_is_the_one_on_the_device(name: str) -> None:
    cut, tokens, bias = CUTS["everything"], windows(2), {}
    decoder, waiting = dense(name), dense(name)
    bias = {f"{decoder.anatomy.blocks}.3.{decoder.anatomy.mlp_output}.bias": normal(32)}
    placement = place(waiting, Where(torch.device("cpu"), offload=True))
    with gated(waiting, cut):
        tried = logits(waiting, tokens)
    decoder, waiting = (operate(one, Plan(cut, bias)) for one in (decoder, waiting))
    behind = logits(waiting, tokens)
    assert torch.equal(behind, logits(decoder, tokens)) and not torch.equal(behind, tried)
    block = waiting.block(3)
    with placement.on_device(block):
        block.get_submodule(waiting.anatomy.mlp_output).weight.mul_(2.0)
        placement.wrote(block)
    decoder.block(3).get_submodule(decoder.anatomy.mlp_output).weight.mul_(2.0)
    assert torch.equal(logits(waiting, tokens), logits(decoder, tokens))
