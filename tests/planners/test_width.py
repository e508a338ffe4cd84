"""Planners of heads and channels against their equations, written out on models small enough to see."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import components, tiny, windows
from torch import Tensor
from torch.nn import functional

from harness.calibration.views.structure import DecoderView
from harness.core.cost import removed
from harness.core.statistic import squared_norms
from harness.core.structure import UNCUT, Cut, Plan, Unit
from harness.core.width import Module, Width, input_norms, picked, pruned_norms
from harness.models.decoder import decoder_of
from harness.models.gates import gated
from harness.models.surgery import operate
from harness.planners.flap import Flap, fluctuation, running_fluctuation
from harness.planners.llm_pruner import LLMPruner
from harness.planners.magnitude_sp import MagnitudeSp
from harness.planners.saap import CAP, LEFT, Saap
from harness.planners.wanda_sp import WandaSp
from harness.runtime.errors import Refusal, UserError

TOKENS = windows(4)
WIDTH = {name: one for name, one in components("planner").items() if hasattr(one, "round_to")}
WIDTH |= {name: replace(one, steps=0, held_out=0) for name, one in WIDTH.items() if hasattr(one, "held_out")}
"""A planner that learns takes its first guess: there is no text to learn from."""
BLOCKS = 4


def view(family: str = "llama", scope: tuple[int, ...] | None = None, **changes: Any) -> DecoderView:
    decoder = decoder_of(tiny(family, num_hidden_layers=BLOCKS, **changes))
    return DecoderView(decoder, list(TOKENS.split(2)), scope or decoder.indices)


def kept(edit: Cut, asked: DecoderView, part: Any) -> list[int]:
    return [asked.geometry.count(part) - len(edit.gone(part, block)) for block in range(BLOCKS)]


@pytest.mark.parametrize("name", WIDTH)
@pytest.mark.parametrize("of", ["linears", "parameters"])
def test_channels_are_rounded_and_the_amount_is_met(name: str, of: Any) -> None:
    """A multiple is left of each block that loses some; without any bundle it would be less than was asked for."""
    asked = view(intermediate_size=54)
    planner = replace(WIDTH[name], amount=0.15, of=of, round_to=4, keep_first=1, keep_last=0)
    edit = planner.plan(asked).edit
    lost = {block: set(edit.gone("channel", block)) for block in range(BLOCKS)}
    assert all((54 - len(gone)) % 4 == 0 for gone in lost.values() if gone) and not edit.gone("channel", 0)
    assert removed(edit, asked.geometry, of) >= 0.15
    bundles = [
        frozenset(unit for unit in edit.units if unit.part == "channel" and unit.block == b) for b in range(1, 4)
    ]
    sizes = [4 if len(one) > 2 else len(one) for one in bundles]
    heads = [frozenset({unit}) for unit in edit.units if unit.part == "head"]
    fewer = [edit.units - frozenset(list(one)[:size]) for one, size in zip(bundles, sizes, strict=True) if one]
    fewer += [edit.units - one for one in heads]
    assert min(removed(Cut(units), asked.geometry, of) for units in fewer) < 0.15


@pytest.mark.parametrize(
    "planner", [WandaSp(), MagnitudeSp(), Flap(structure="UL-UM")], ids=lambda one: type(one).__name__
)
def test_every_block_loses_the_same_share(planner: Any) -> None:
    """To one unit; of units as the authors' codes round, int(n·r)."""
    asked = view()
    edit = replace(planner, amount=0.31).plan(asked).edit
    for part in ("head", "channel"):
        counts = kept(edit, asked, part)
        assert max(counts) - min(counts) <= 1
    wide = asked.geometry.wide
    edit = replace(planner, amount=0.31, of="units").plan(asked).edit
    assert kept(edit, asked, "channel") == [wide - int(0.31 * wide)] * BLOCKS
    assert kept(edit, asked, "head") == [asked.geometry.groups - int(0.31 * asked.geometry.groups)] * BLOCKS


def test_all_units_compete_to_the_amount() -> None:
    """By hand: the lowest scores of all modules, so many that the share of units is reached."""
    asked = view()
    width, generator = Width(0.4, "units"), torch.Generator().manual_seed(0)
    scores = {one: torch.rand(count, generator=generator) for one, count in width.modules(asked).items()}
    edit = width.lowest(scores, asked.geometry)
    every = sorted((float(score), one, at) for one, found in scores.items() for at, score in enumerate(found))
    wanted = len(every) - int(len(every) * (1 - 0.4))
    assert edit == Cut(frozenset(Unit(*one, at) for _, one, at in every[:wanted]))


def test_norms_of_a_block_behind_narrowed_ones() -> None:
    """Scores of a block are those in a model of which the blocks in front are really cut."""
    asked = view()
    modules = Width(0.5, "units").modules(asked)
    before = {name: one.clone() for name, one in asked._decoder.model.state_dict().items()}

    def lowest(module: Module, scores: Tensor) -> Tensor:
        return scores <= scores.sort().values[len(scores) // 2 - 1]

    scores = pruned_norms(asked, modules, lowest)
    assert all(torch.equal(one, before[name]) for name, one in asked._decoder.model.state_dict().items())
    counts = {module: units // 2 for module, units in modules.items()}
    for index in range(BLOCKS):
        front = {module: count for module, count in counts.items() if module.block < index}
        cut = operate(decoder_of(tiny("llama", num_hidden_layers=BLOCKS)), Plan(picked(scores, front)))
        behind = DecoderView(cut, list(TOKENS.split(2)), cut.indices)
        for block in behind.observe(squared_norms):
            for part in ("head", "channel") if block.index == index else ():
                site, module = behind.writers(part)[index], Module(part, index)
                own = input_norms(block.weights[site], block.observe(squared_norms)[site], modules[module])
                torch.testing.assert_close(scores[module], own, rtol=1e-5, atol=1e-7)


def test_fluctuation_is_the_variance_of_all_tokens() -> None:
    seen = [torch.randn(24, 8) * 3 + 5 for _ in range(5)]
    state = fluctuation.init(8, torch.device("cpu"))
    for window in seen:
        state = fluctuation.update(state, window)
    torch.testing.assert_close(state.variance, torch.cat(seen).var(dim=0))
    torch.testing.assert_close(state.mean, torch.cat(seen).mean(dim=0))
    assert fluctuation.merge is not None
    halves = [fluctuation.init(8, torch.device("cpu")) for _ in range(3)]
    for number, window in enumerate(seen):
        halves[number % 2] = fluctuation.update(halves[number % 2], window)
    torch.testing.assert_close(fluctuation.merge(halves).variance, torch.cat(seen).var(dim=0))


def test_fluctuation_as_the_authors_have_it() -> None:
    """Their recurrence unrolled: Σ_k k/4 · 1/(k+1) · Σ (x − m_k)² over windows k = 1…4, m_k the mean up to window k."""
    seen = [torch.randn(24, 8).double() + 5 for _ in range(5)]
    state = running_fluctuation.init(8, torch.device("cpu"))
    for window in seen:
        state = running_fluctuation.update(state, window)
    expected = sum(
        k / 4 / (k + 1) * (seen[k] - torch.stack(seen[: k + 1]).mean(dim=(0, 1))).square().sum(0) for k in range(1, 5)
    )
    torch.testing.assert_close(state.variance.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("family", ["llama", "opt", "mistral", "gpt_neox"])
@pytest.mark.parametrize("structure", ["AL-AM", "UL-UM"])
def test_a_bias_for_what_goes(family: str, structure: Any) -> None:
    """Gates in a model with the biases are the cut model, and inputs that never vary are not missed at all."""
    asked = view(family)
    plan = Flap(structure=structure, amount=0.3).plan(asked)
    assert plan.tensors and all(name.endswith(".bias") for name in plan.tensors)
    done = operate(decoder_of(tiny(family, num_hidden_layers=BLOCKS)), plan)
    biased = operate(decoder_of(tiny(family, num_hidden_layers=BLOCKS)), Plan(UNCUT, plan.tensors))
    with torch.no_grad(), gated(biased, plan.edit):
        tried = biased.model(TOKENS, use_cache=False).logits
    with torch.no_grad():
        torch.testing.assert_close(tried, done.model(TOKENS, use_cache=False).logits, rtol=1e-4, atol=1e-4)


def test_a_bias_is_the_mean_of_what_goes() -> None:
    """The mean output of each matrix over the calibration tokens stays what it was, as the block in front is dense."""
    asked = view()
    plan = Flap(amount=0.3, structure="UL-UM").plan(asked)
    site = asked.writers("channel")[0]
    inputs = list[Tensor]()
    handle = asked._decoder.block(0).mlp.down_proj.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    with torch.no_grad():
        asked._decoder.model(TOKENS, use_cache=False)
    handle.remove()
    gone = list(plan.edit.gone("channel", 0))
    mean = inputs[0].flatten(0, 1).mean(dim=0)
    expected = asked.weights[site][:, gone] @ mean[gone]
    torch.testing.assert_close(plan.tensors[f"{site}.bias"], expected, rtol=1e-4, atol=1e-5)


def gradients(family: str, **changes: Any) -> tuple[Any, list[dict[str, Tensor]]]:
    """A model, and the gradients of each window's loss by parameter, by autograd on all of it."""
    model = tiny(family, num_hidden_layers=BLOCKS, **changes)
    found = []
    for window in TOKENS.split(1):
        model.zero_grad()
        model.requires_grad_(True)
        logits = model(window, use_cache=False).logits
        functional.cross_entropy(logits[0, :-1], window[0, 1:]).backward()
        found.append({name: one.grad.clone() for name, one in model.named_parameters()})
    return model, found


def lines(model: Any, block: int, unit: Unit) -> dict[str, tuple[Tensor | slice, Tensor | slice]]:
    """Rows or columns of the matrices of a unit of a LLaMA with two query heads a key/value head, of size 8."""
    path, every = f"model.layers.{block}", slice(None)
    if unit.part == "channel":
        one = torch.tensor([unit.index])
        return {f"{path}.mlp.{name}_proj.weight": (one, every) for name in ("gate", "up")} | {
            f"{path}.mlp.down_proj.weight": (every, one)
        }
    queries = torch.arange(16) + 16 * unit.index
    keys = torch.arange(8) + 8 * unit.index
    return {
        f"{path}.self_attn.q_proj.weight": (queries, every),
        f"{path}.self_attn.k_proj.weight": (keys, every),
        f"{path}.self_attn.v_proj.weight": (keys, every),
        f"{path}.self_attn.o_proj.weight": (every, queries),
    }


@pytest.mark.parametrize("importance", ["param_first", "vectorize", "param_second", "param_mix"])
def test_importance_of_a_unit_under_grouped_queries(importance: Any) -> None:
    """Its own rows and columns, the query heads being those that read the key/value head."""
    model, found = gradients("llama", num_key_value_heads=2)
    asked = view(num_key_value_heads=2)
    planner = LLMPruner(importance=importance, windows=4)
    scores = planner._scores(asked, Width(0.1, "units").modules(asked))
    named = dict(model.named_parameters())
    for unit in (Unit("head", 1, 0), Unit("head", 2, 1), Unit("channel", 1, 5)):
        expected = 0.0
        for name, (rows, columns) in lines(model, unit.block, unit).items():
            weight = named[name].detach()[rows][:, columns]
            each = [one[name][rows][:, columns] for one in found]
            first = weight * torch.stack(each).mean(dim=0)
            second = weight * torch.stack(each).square().mean(dim=0) * weight
            along = 1 if isinstance(columns, slice) else 0
            expected += {
                "param_first": first.abs().sum(),
                "vectorize": first.sum(dim=along).abs().sum(),
                "param_second": second.abs().sum(),
                "param_mix": (first - 0.5 * second).abs().sum(),
            }[importance].item()
        assert float(scores[Module(unit.part, unit.block)][unit.index]) == pytest.approx(expected, rel=1e-4)


def test_drawn_units_ask_for_no_windows() -> None:
    """And depend on the seed."""
    assert LLMPruner(importance="random").needs_calibration is False and LLMPruner().needs_calibration
    decoder = decoder_of(tiny("llama", num_hidden_layers=BLOCKS))
    one, other = (
        LLMPruner(importance="random").plan(DecoderView(decoder, [], decoder.indices, seed=seed)).edit
        for seed in (0, 1)
    )
    assert one != other and kept(one, view(), "channel") == kept(other, view(), "channel")


def test_fused_importance() -> None:
    """½ (V / mean V + E / mean E), from gradients of the whole model."""
    model, found = gradients("llama", num_key_value_heads=2)
    asked = view(num_key_value_heads=2)
    scores = Saap(windows=4)._scores(asked, Width(0.1, "units").modules(asked))
    named = dict(model.named_parameters())
    vector, element = torch.zeros(BLOCKS, 2), torch.zeros(BLOCKS, 2)
    for block in range(BLOCKS):
        for head in range(2):
            for name, (rows, columns) in lines(model, block, Unit("head", block, head)).items():
                weight = named[name].detach()[rows][:, columns]
                each = torch.stack([one[name][rows][:, columns] for one in found])
                change = weight * each.mean(dim=0) - 0.5 * weight * each.square().mean(dim=0) * weight
                vector[block, head] += change.sum().abs()
                element[block, head] += change.abs().sum()
    expected = 0.5 * (vector / vector.mean() + element / element.mean())
    for block in range(BLOCKS):
        torch.testing.assert_close(scores[Module("head", block)], expected[block], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("indicator", ["spread", "mean"])
def test_modules_lose_by_their_indicator(indicator: Any) -> None:
    """More where it is higher, never more than twice the share of all, and something is always left."""
    asked = view()
    edit = Saap(fluctuation=indicator, amount=0.3, of="linears", keep_first=0, keep_last=0).plan(asked).edit
    told = {(part, block): value for part, block, value in asked.diagnostics["indicators"]}
    counts = kept(edit, asked, "channel")
    order = sorted(range(BLOCKS), key=lambda block: told["channel", block])
    assert [counts[block] for block in order] == sorted(counts, reverse=True) and len(set(counts)) > 1
    share = 0.3  # all linears may go, so that it is that of units as well
    assert all(asked.geometry.wide - count <= math.ceil(CAP * share * asked.geometry.wide) for count in counts)
    assert min(counts) >= LEFT["channel"] and min(kept(edit, asked, "head")) >= LEFT["head"]


@pytest.mark.parametrize("name", WIDTH)
def test_what_cannot_be(name: str) -> None:
    """One sentence each: scope and ends that exclude each other, more than all units, heads that share a norm."""
    planner = WIDTH[name]
    with pytest.raises(Refusal, match="no block may lose heads or channels"):
        replace(planner, keep_first=2, keep_last=0).plan(view(scope=(0, 1)))
    with pytest.raises(Refusal, match="cannot go"):
        replace(planner, amount=0.9, of="linears", keep_first=1, keep_last=1).plan(view())
    with pytest.raises(Refusal, match="a norm spans"):
        planner.plan(view("olmo2"))
    narrow = operate(decoder_of(tiny("llama", num_hidden_layers=BLOCKS)), Plan(Cut(frozenset({Unit("channel", 2, 3)}))))
    with pytest.raises(Refusal, match="block 2 has lost channels"):
        planner.plan(DecoderView(narrow, list(TOKENS.split(2)), narrow.indices))
    with pytest.raises(Refusal, match="round_to"):
        replace(planner, round_to=1000).plan(view())
    for wrong in ({"amount": 1.0}, {"amount": -0.1}, {"keep_first": -1}, {"round_to": 0}):
        with pytest.raises(UserError, match="planner"):
            replace(planner, **wrong)


def test_the_released_code_does_not_round() -> None:
    with pytest.raises(UserError, match="released"):
        Flap(variant="released", round_to=8)


def test_scores_that_tie_stay_as_released() -> None:
    """More dead channels than shall go: the threshold is theirs, and nothing is below it."""
    module = Module("channel", 0)
    scores = {module: torch.tensor([0.0, 2.0, 0.0, 1.0, 0.0])}
    assert picked(scores, {module: 2}, ties_stay=True) == UNCUT
    assert picked(scores, {module: 3}, ties_stay=True) == picked(scores, {module: 3})
