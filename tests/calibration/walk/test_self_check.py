"""The two checks before anything is pruned: they pass on every family and catch what they are there for."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers import TINY, given_tokens, tiny
from torch import nn

from harness.calibration.walk.checks import self_check
from harness.models.decoder import decoder_of
from harness.models.pieces import follow_tokens
from harness.runtime.errors import UserError


def wrapped(block: nn.Module, change: Any) -> None:
    """Let a block give `change(hidden)` of what it gave."""
    run = block.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = run(*args, **kwargs)
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    block.forward = forward


def test_a_family_whose_arguments_follow_tokens_is_marked() -> None:
    """By a block behind the first, which a look at the first one alone would miss."""
    plain, follows = tiny("llama"), given_tokens(tiny("llama"), 1)
    for model in (plain, follows):
        self_check(decoder_of(model))
    assert not follow_tokens(plain.model.layers) and follow_tokens(follows.model.layers)
    assert follow_tokens(copy.deepcopy(follows).model.layers), "a replica knows it too"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", TINY)
def test_every_family_passes_and_is_left_as_it_was(name: str, dtype: torch.dtype) -> None:
    model = tiny(name, dtype)
    decoder = decoder_of(model)  # which makes ordinary linears of transposed ones
    before = {key: value.clone() for key, value in model.state_dict().items()}
    self_check(decoder)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["llama", "opt", "gemma2"])
def test_a_block_that_counts_its_calls_is_caught(name: str) -> None:
    """Its second run is not its first, so a replay is not the model."""
    model = tiny(name)
    calls = []

    def louder(hidden: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return hidden * (1 + 0.1 * len(calls))

    wrapped(decoder_of(model).modules[0], louder)
    with pytest.raises(UserError, match=r"replaying the blocks of this model moves its logits by .* not supported"):
        self_check(decoder_of(model))


def test_something_between_the_blocks_is_caught() -> None:
    """The model hands blocks the sum of all before them, by an attribute that a replay does not know."""
    model = tiny("llama")
    memory: dict[str, torch.Tensor] = {}

    def remember(_: nn.Module, positional: tuple[torch.Tensor, ...]) -> None:
        memory["embedded"] = positional[0].sum() if memory.get("fresh") is None else torch.zeros(())
        memory["fresh"] = torch.zeros(())

    model.model.register_forward_pre_hook(lambda *_: memory.clear())
    model.model.layers[0].register_forward_pre_hook(remember)
    wrapped(model.model.layers[1], lambda hidden: hidden + memory["embedded"])
    with pytest.raises(UserError, match="replaying the blocks"):
        self_check(decoder_of(model))


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_a_model_that_looks_ahead_is_caught(name: str) -> None:
    model = tiny(name)
    wrapped(decoder_of(model).modules[1], lambda hidden: hidden + hidden.mean(dim=1, keepdim=True))
    with pytest.raises(UserError, match=r"the last token moves earlier logits by .*: this model is not causal"):
        self_check(decoder_of(model))


def test_a_look_at_the_next_token_alone_is_caught() -> None:
    """Only the last but one position can tell."""
    model = tiny("llama")
    wrapped(model.model.layers[1], lambda hidden: hidden + hidden.roll(-1, dims=1))
    with pytest.raises(UserError, match="this model is not causal"):
        self_check(decoder_of(model))


def test_a_model_that_gives_nan_is_caught() -> None:
    model = tiny("llama")
    wrapped(model.model.layers[1], lambda hidden: hidden * float("nan"))
    with pytest.raises(UserError, match=r"the logits of this model are not finite in float32"):
        self_check(decoder_of(model))
