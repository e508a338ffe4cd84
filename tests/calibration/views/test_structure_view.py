"""What planners are told of a model, against the model itself: its own forward, autograd on all of it, real surgery."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import TINY, tiny, windows
from torch import Tensor
from torch.nn import functional

from harness.calibration.views.structure import DecoderView
from harness.core.interfaces import Question
from harness.core.structure import SUBLAYERS, UNCUT, Cut, Part, Plan, Unit
from harness.models.decoder import Decoder, decoder_of
from harness.models.gates import gated
from harness.models.surgery import operate
from harness.runtime.errors import Refusal

TOKENS = windows(4)
PARTS: tuple[Part, ...] = ("head", "channel", "attention", "mlp", "block")
PLAIN = [name for name in TINY if name != "opt-350m"]


def view(decoder: Decoder, batch: int = 4) -> DecoderView:
    return DecoderView(decoder, list(TOKENS.split(batch)), decoder.indices)


def cut(*units: tuple[Any, ...]) -> Cut:
    return Cut(frozenset(Unit(*unit) for unit in units))


def parts_alone(decoder: Decoder) -> tuple[Part, ...]:
    """The parts whose units can go one by one: no heads where a norm spans all of them."""
    return PARTS if decoder.anatomy.heads_alone else PARTS[1:]


def losses(model: Any, tokens: Tensor) -> Tensor:
    """The mean negative log-likelihood of each window (N,), by the model's own forward."""
    logits = model(tokens, use_cache=False).logits[:, :-1].float()
    each = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return each.unflatten(0, (len(tokens), -1)).double().mean(1)


CUTS = [
    UNCUT,
    cut(("block", 0)),
    cut(("attention", 1)),
    cut(("mlp", 0), ("channel", 1, 3)),
    cut(("channel", 0, 0), ("channel", 0, 7), ("head", 1, 1)),
]


@pytest.mark.parametrize("name", TINY)
def test_losses_of_cuts_are_those_of_cut_models(name: str) -> None:
    """Families that cannot lose a part say so for gates and surgery alike."""
    asked = view(decoder_of(tiny(name)), 1)
    for one in CUTS:
        operated = decoder_of(tiny(name))
        try:
            operated = operate(operated, Plan(one))
        except Refusal:
            with pytest.raises(Refusal):
                asked.losses([one], TOKENS)
            continue
        with torch.no_grad():
            expected = losses(operated.model, TOKENS)
        found = asked.losses([UNCUT, one], TOKENS)
        torch.testing.assert_close(found[1], expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found[0], asked.losses([UNCUT], TOKENS)[0], rtol=0, atol=0)


@pytest.mark.parametrize("objective", ["kl", "distance"])
def test_how_far_cut_models_are_from_the_dense_one(objective: Question) -> None:
    model = tiny("llama")
    decoder = decoder_of(model)
    found = view(decoder).losses(CUTS, TOKENS, objective)
    with torch.no_grad():
        dense = model(TOKENS).logits[:, :-1]
        for one, row in zip(CUTS, found, strict=True):
            with gated(decoder, one):
                logits = model(TOKENS).logits[:, :-1]
            if objective == "distance":
                expected = (dense - logits).norm(dim=-1).mean(1)
            else:
                expected = functional.kl_div(
                    logits.log_softmax(-1), dense.log_softmax(-1), log_target=True, reduction="none"
                ).sum(-1).mean(1)  # fmt: skip
            torch.testing.assert_close(row, expected.double(), rtol=1e-4, atol=1e-6)
    assert found[0].abs().max() < 1e-6


def test_what_candidates_have_in_common_runs_once() -> None:
    """Three candidates over three blocks: the first block runs once, the second twice, the third three times."""
    decoder = decoder_of(tiny("llama", num_hidden_layers=3))
    asked = view(decoder)
    runs = dict.fromkeys(range(3), 0)

    def count(index: int) -> Any:
        def hook(*_: Any) -> None:
            runs[index] += 1

        return hook

    handles = [decoder.block(index).mlp.register_forward_hook(count(index)) for index in range(3)]
    asked.losses([UNCUT, cut(("channel", 1, 0)), cut(("channel", 2, 0))], TOKENS)
    for handle in handles:
        handle.remove()
    shown = 1  # the first block runs once more, to show what it gives
    assert runs == {0: 1 + shown, 1: 2, 2: 3}


@pytest.mark.parametrize("name", TINY)
def test_masks_are_cuts_row_by_row(name: str) -> None:
    """Two samples of heads, channels, sub-layers and blocks in one forward, against cuts one after the other."""
    decoder = decoder_of(tiny(name))
    asked = view(decoder)
    geometry = asked.geometry
    generator = torch.Generator().manual_seed(0)
    heads, channels = ((torch.rand(2, 2, n, generator=generator) > 0.4) for n in (geometry.groups, geometry.wide))
    heads[..., 0] = True
    blocks, attention = torch.tensor([[1, 1], [0, 1]]), torch.tensor([[1, 0], [1, 1]])
    inner = {"head": heads.float(), "channel": channels.float()}
    for masks in (
        {part: mask for part, mask in inner.items() if part in parts_alone(decoder)},
        {"block": blocks.float(), "attention": attention.float()},
    ):
        expected = [
            Cut(
                frozenset(
                    Unit(part, *place)
                    for part, mask in masks.items()
                    for place in (mask[sample] == 0).nonzero().tolist()
                )
            )
            for sample in range(2)
        ]
        torch.testing.assert_close(
            asked.masked_losses(masks, TOKENS), asked.losses(expected, TOKENS), rtol=1e-5, atol=1e-6
        )


def test_heads_that_cannot_go_alone_have_neither_masks_nor_gates() -> None:
    """With zeros for one of them, a norm over all heads divides by what no cut would."""
    asked = view(decoder_of(tiny("olmo2")))
    for question in (
        lambda: asked.masked_losses({"head": torch.ones(1, 2, 2)}, TOKENS),
        lambda: asked.gate_gradients(TOKENS, ["channel", "head"]),
    ):
        with pytest.raises(Refusal, match="heads cannot go one by one in the family 'olmo2'"):
            question()


@pytest.mark.parametrize("name", TINY)
def test_passages_are_hidden_states_of_the_model(name: str) -> None:
    """In front of every block and behind it, as the model's own forward has them, whatever the batches."""
    model = tiny(name)
    decoder = decoder_of(model)
    caught: dict[int, list[Tensor]] = {}

    def catch(index: int) -> Any:
        def hook(_: Any, positional: Any, named: Any, output: Any) -> None:
            hidden = positional[0] if positional else named["hidden_states"]
            caught[index] = [hidden, output[0] if isinstance(output, tuple) else output]

        return hook

    handles = [decoder.block(i).register_forward_hook(catch(i), with_kwargs=True) for i in range(2)]
    with torch.no_grad():
        model(TOKENS, use_cache=False)
    for handle in handles:
        handle.remove()
    found: dict[Unit, list[Any]] = {}
    for passage in view(decoder, 2).hidden("block"):
        found.setdefault(passage.unit, []).append(passage)
    assert list(found) == [Unit("block", 0), Unit("block", 1)]
    for unit, parts in found.items():
        for side, expected in zip(("before", "behind"), caught[unit.block], strict=True):
            seen = torch.cat([getattr(part, side) for part in parts])
            torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_sublayers_add_up_to_their_block(name: str) -> None:
    """One behind the other: what is behind attention is in front of the mlp; beside one another: updates add up."""
    decoder = decoder_of(tiny(name))
    asked = view(decoder)
    whole = {passage.unit.block: passage for passage in asked.hidden("block")}
    parts = {passage.unit: passage for passage in asked.hidden("sublayer")}
    for index, block in whole.items():
        attention, mlp = (parts[Unit(part, index)] for part in SUBLAYERS)
        torch.testing.assert_close(attention.before, block.before, rtol=0, atol=0)
        if asked.geometry.parallel:
            added = (attention.behind - attention.before) + (mlp.behind - mlp.before)
            torch.testing.assert_close(added, block.behind - block.before, rtol=1e-4, atol=1e-4)
        else:
            assert torch.equal(mlp.before, attention.behind) and torch.equal(mlp.behind, block.behind)
        with torch.no_grad(), gated(decoder, cut(("mlp", index))):
            alone = next(one for one in asked.hidden("block") if one.unit.block == index)
        assert torch.equal(alone.behind, attention.behind)


@pytest.mark.parametrize("name", ["llama", "opt", "gemma2", "phi3", "gpt_neox"])
def test_gradients_are_those_of_autograd_on_the_whole_model(name: str) -> None:
    """Means over windows of the gradient of each window's loss, and of its square."""
    model = tiny(name)
    decoder = decoder_of(model)
    named = dict(model.named_parameters())
    for parameter in named.values():
        parameter.requires_grad_(True)
    sums = {key: torch.zeros_like(value) for key, value in named.items()}
    squares = {key: torch.zeros_like(value) for key, value in named.items()}
    for window in TOKENS.split(1):
        model.zero_grad()
        losses(model, window).mean().backward()
        for key, value in named.items():
            sums[key] += value.grad / len(TOKENS)
            squares[key] += value.grad.square() / len(TOKENS)
    for parameter in named.values():
        parameter.requires_grad_(False).grad = None
    seen = []
    for block in view(decoder).gradients(TOKENS, squares=True):
        seen.append(block.index)
        assert len(block.weights) == sum(
            key.startswith(f"{decoder.site(block.index)}.") and key.endswith("weight") for key in named
        )
        for site, gradient in block.gradients.items():
            torch.testing.assert_close(gradient, sums[f"{site}.weight"], rtol=1e-3, atol=1e-6)
            torch.testing.assert_close(block.squares[site], squares[f"{site}.weight"], rtol=1e-3, atol=1e-7)
    assert seen == [1, 0]
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", PLAIN)
def test_sums_by_unit_are_sums_over_what_the_unit_has(name: str) -> None:
    """The squared weights of a unit are what the matrices lose with it in surgery: with an only head, all they have."""
    decoder = decoder_of(tiny(name))
    whole = {site: linear.weight.square().sum() for site, linear in decoder.linears(0).items()}
    parts: tuple[Part, ...] = ("head", "channel")
    found = {}
    for block in view(decoder).gradients(TOKENS[:1]):
        if block.index == 0:
            squared = {site: weight.square() for site, weight in block.weights.items()}
            found = {part: block.by_unit(part, squared) for part in parts}
    for part, sites in found.items():
        last = view(decoder).geometry.count(part) - 1
        for site, sums in sites.items():
            assert len(sums) == last + 1
            torch.testing.assert_close(whole[site], sums.sum(), rtol=1e-5, atol=1e-5)
        if part in parts_alone(decoder):
            left = operate(decoder_of(tiny(name)), Plan(cut((part, 0, last)))).linears(0)
            for site, sums in sites.items():
                lost = whole[site] - (left[site].weight.square().sum() if site in left else 0.0)
                torch.testing.assert_close(lost, sums[last], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", PLAIN)
def test_gates_have_the_derivatives_of_finite_differences(name: str) -> None:
    """Central differences of masked losses in double precision.

    RMS norms in float32, and the softmax of attention where it is not fused, leave noise of about 1e-8 in the losses,
    which a small step would divide by.
    """
    decoder = decoder_of(tiny(name, torch.float64))
    asked = view(decoder)
    geometry = asked.geometry
    parts = parts_alone(decoder)
    double = geometry.norm_vectors == 2 and decoder.anatomy.sdpa
    step, error = (1e-5, 2e-6) if double else (1e-3, 2e-5)
    found = asked.gate_gradients(TOKENS, parts)
    for part in parts:
        last = geometry.count(part) - 1
        shape = (2, 2, last + 1) if part in ("head", "channel") else (2, 2)
        places = [(1, 0), (0, last)] if part in ("head", "channel") else [(0,), (1,)]
        for place in places:
            masks = torch.ones(shape, dtype=torch.float64)
            masks[(0, *place)], masks[(1, *place)] = 1 - step, 1 + step
            low, high = asked.masked_losses({part: masks}, TOKENS).mean(1)
            torch.testing.assert_close(found[part][place], (high - low) / (2 * step), rtol=1e-3, atol=error)


def test_a_scope_leaves_the_others_out() -> None:
    decoder = decoder_of(tiny("llama"))
    asked = DecoderView(decoder, [TOKENS], [1])
    assert asked.units("head") == (Unit("head", 1, 0), Unit("head", 1, 1))
    assert {passage.unit.block for passage in asked.hidden("sublayer")} == {1}
    assert [block.index for block in asked.gradients(TOKENS)] == [1]
    assert asked.gate_gradients(TOKENS, ["mlp"])["mlp"][0] == 0


def test_windows_of_the_view() -> None:
    asked = view(decoder_of(tiny("llama")), 3)
    assert torch.equal(asked.windows, TOKENS) and torch.equal(asked.draw(2), TOKENS[:2])
