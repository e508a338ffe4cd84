"""Constants in place of what is cut: gates, surgery and files agree, in every family that has a place for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TINY, normal, tiny, windows
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from harness.core import checked
from harness.core.structure import Cut, Plan, Unit
from harness.models.decoder import Decoder, decoder_of
from harness.models.gates import gated
from harness.models.geometry import of_config
from harness.models.placement import Where, place
from harness.models.sliced import SLICED, self_slicing, slice_config, unsliced
from harness.models.surgery import operate
from harness.models.written import check_plain, plain
from harness.runtime.errors import Failure, Refusal

SHIFTS = {
    Unit("attention", 1): normal(32, seed=1),
    Unit("mlp", 1): normal(32, seed=2),
    Unit("block", 2): normal(32, seed=3),
    Unit("attention", 3): normal(32, seed=4),
}
"""Of two blocks behind one another, one of them in two parts, and of the attention of a block that stays."""
CUT = Cut(frozenset(SHIFTS))
NORMED = {"gemma2", "gemma3_text", "olmo2", "opt-350m"}
"""Families whose blocks end with a norm, which a bias in front of it would go through."""
NO_PLACE = {"mistral", "qwen2", "qwen3", "gemma", "phi3", "falcon", "falcon-40b"}
"""Families whose own class has no bias in the feed-forward part."""


def dense(name: str) -> Decoder:
    types = {"layer_types": ["full_attention"] * 4} if "layer_types" in TINY[name] else {}
    return decoder_of(tiny(name, num_hidden_layers=4, **types))


def logits(decoder: Decoder, tokens: Tensor) -> Tensor:
    return decoder.model(tokens, use_cache=False).logits


def added(constant: Tensor) -> Any:
    return lambda _, __, output: (output[0] + constant, *output[1:]) if isinstance(output, tuple) else output + constant


@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_a_shift_is_a_constant_in_the_stream(name: str) -> None:
    """By hand: behind a block that passes the stream; as what attention gives, or feed-forward parts."""
    decoder, tokens = dense(name), windows(2)
    with gated(decoder, CUT, SHIFTS):
        tried = logits(decoder, tokens)
    handles = [
        decoder.block(1).register_forward_hook(added(SHIFTS[Unit("attention", 1)] + SHIFTS[Unit("mlp", 1)])),
        decoder.block(2).register_forward_hook(added(SHIFTS[Unit("block", 2)])),
        decoder.block(3).get_submodule(decoder.anatomy.parts[0]).register_forward_hook(
            added(SHIFTS[Unit("attention", 3)])
        ),
    ]  # fmt: skip
    with gated(decoder, CUT):
        by_hand = logits(decoder, tokens)
        for handle in handles:
            handle.remove()
        without = logits(decoder, tokens)
    torch.testing.assert_close(tried, by_hand, rtol=1e-4, atol=1e-4)
    assert float((tried - without).abs().max()) > 1e-2
    if name in NORMED:
        with pytest.raises(Refusal, match=r"nothing can stand in for .* 1: the family '.*' norms what block 0"):
            operate(dense(name), Plan(CUT, shifts=SHIFTS))
        return
    smaller = operate(decoder, Plan(CUT, shifts=SHIFTS))
    torch.testing.assert_close(logits(smaller, tokens), tried, rtol=1e-4, atol=1e-4)
    told = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    ahead = [smaller.model.generate(tokens[:, :10], use_cache=cached, **told) for cached in (True, False)]
    assert torch.equal(*ahead)


@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_shifts_are_written_and_read(name: str, tmp_path: Path) -> None:
    """In true widths always; as a plain checkpoint where the family's class has a place for the biases."""
    cut = Cut(frozenset({Unit("attention", 1)})) if name in NORMED else CUT
    shifts = {unit: shift for unit, shift in SHIFTS.items() if unit in cut.units or cut == CUT}
    smaller, tokens = operate(dense(name), Plan(cut, shifts=shifts)), windows(2)
    expected = logits(smaller, tokens)
    if name in NO_PLACE | NORMED:
        with pytest.raises(Refusal, match="take save_form=sliced"):
            check_plain(smaller)
    else:
        check_plain(smaller)
        plain(smaller).save_pretrained(tmp_path / "plain")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
        torch.testing.assert_close(again(tokens, use_cache=False).logits, expected, rtol=1e-4, atol=1e-4)
    if smaller.anatomy.conv1d:
        return
    smaller.model.save_pretrained(tmp_path / "sliced")
    slice_config(smaller, tmp_path / "sliced/config.json")
    config = json.loads((tmp_path / "sliced/config.json").read_text())
    about = config[SLICED]
    kind = self_slicing(type(smaller.model), about)
    plain_config = AutoConfig.for_model(**{k: v for k, v in unsliced(config, tmp_path).items() if k != SLICED})
    again = kind.from_pretrained(tmp_path / "sliced", config=plain_config).eval()  # type: ignore[attr-defined]
    torch.testing.assert_close(again(tokens, use_cache=False).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "opt"])
@torch.no_grad()
def test_blocks_that_wait_in_host_memory_are_shifted_too(name: str) -> None:
    decoder, waiting, tokens = dense(name), dense(name), windows(2)
    place(waiting, Where(torch.device("cpu"), offload=True))
    decoder, waiting = (operate(one, Plan(CUT, shifts=SHIFTS)) for one in (decoder, waiting))
    assert torch.equal(logits(waiting, tokens), logits(decoder, tokens))


@torch.no_grad()
def test_a_bias_that_is_there_stays() -> None:
    decoder, tokens = dense("opt"), windows(2)
    before = decoder.block(1).fc2.bias.clone()
    shift = {Unit("block", 2): normal(32)}
    smaller = operate(decoder, Plan(Cut.of_blocks([2]), shifts=shift))
    assert isinstance(smaller.block(1).fc2, nn.Linear) and logits(smaller, tokens).isfinite().all()
    torch.testing.assert_close(smaller.block(1).fc2.bias, before + shift[Unit("block", 2)])


def test_what_has_no_place_is_said() -> None:
    shift = normal(32)
    with pytest.raises(Refusal, match="for block 0: no block is left in front of it"):
        operate(dense("llama"), Plan(Cut.of_blocks([0]), shifts={Unit("block", 0): shift}))
    with pytest.raises(Refusal, match="nothing can stand in for mlp 1, which stays"):
        operate(dense("llama"), Plan(Cut.of_blocks([2]), shifts={Unit("mlp", 1): shift}))
    geometry = of_config(dense("llama").config.to_dict())
    for shifts, said in (
        ({Unit("block", 1): shift[:8]}, r"where a tensor \[32\] is due"),
        ({Unit("mlp", 1): shift}, "which stays"),
        ({Unit("head", 2): shift}, "which stays"),
    ):
        with pytest.raises(Failure, match=said):
            checked.plan("it", Plan(Cut.of_blocks([2]), shifts=shifts), geometry)
