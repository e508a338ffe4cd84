"""Every supported family as a tiny random model: found, covered, pruned where asked and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import METHODS, TINY, linears, pattern, tiny, windows
from transformers import AutoConfig, AutoModelForCausalLM

from harness.compress import prune
from harness.core.pattern import NofM, satisfies
from harness.core.structure import Cut, Plan
from harness.evaluation.zeros import achieved_sites, fraction_of_zeros
from harness.models import anatomy
from harness.models.anatomy import FAMILIES, FIRST_LAYOUTS, Anatomy, revised_layout
from harness.models.decoder import decoder_of
from harness.models.surgery import operate
from harness.runtime.errors import UserError


def test_every_family_has_a_tiny_model() -> None:
    assert {TINY[name].get("model_type", name) for name in TINY} == set(FAMILIES)


@pytest.mark.parametrize("name", TINY)
def test_a_layout_finds_every_linear_of_the_blocks(name: str) -> None:
    model = tiny(name)
    decoder = decoder_of(model)
    found = [decoder.linears(index) for index in range(2)]
    assert found[0] | found[1] == linears(model, decoder.modules)
    assert sum(found[0][site].weight.numel() for site in found[0]) == sum(
        p.numel() for p in decoder.modules[0].parameters() if p.dim() > 1
    )
    assert decoder.anatomy.linears == tuple(name for group in decoder.anatomy.inputs for name in group)


@pytest.mark.parametrize("asked", ["0.5", "2of4"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", TINY)
def test_pruning_touches_the_sites_and_nothing_else(name: str, method: str, asked: str) -> None:
    model, wanted = tiny(name), pattern(asked)
    decoder = decoder_of(model)
    sites = linears(model, decoder.modules)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    done = prune(decoder, [windows(4)], range(2), METHODS[method], dict.fromkeys(sites, wanted))
    assert set(done) == set(sites)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {f"{site}.weight" for site in sites}
    for site, linear in sites.items():
        weight = linear.weight
        assert torch.equal(weight != 0, done[site].kept)
        rows = max(weight.shape[0], 1)  # one more per comparison group, at most
        assert 0 <= int((weight == 0).sum()) - weight.numel() // 2 <= (0 if isinstance(wanted, NofM) else rows)
        assert satisfies(weight, wanted)
    assert all(torch.isfinite(model(batch).logits).all() for batch in [windows(1)])
    report = achieved_sites(decoder, range(2), dict.fromkeys(sites, wanted))
    assert {entry["pattern"] for entry in report.values()} == {str(wanted)}
    assert {entry["asked"] for entry in report.values()} == {0.5}
    assert fraction_of_zeros(decoder, None) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_stays_bfloat16(method: str) -> None:
    model = tiny("llama", torch.bfloat16)
    sites = linears(model, model.model.layers)
    prune(decoder_of(model), [windows(2)], range(1), METHODS[method], dict.fromkeys(sites, pattern("2of4")))
    assert all(linear.weight.dtype == torch.bfloat16 for linear in sites.values())
    assert fraction_of_zeros(decoder_of(model), range(1)) == 0.5
    assert fraction_of_zeros(decoder_of(model), None) == 0.25
    assert fraction_of_zeros(decoder_of(model), range(0)) == 0.0


def test_a_revised_layout_is_another_run_and_the_first_one_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of before say nothing of their layout: theirs are the first ones."""
    assert set(FIRST_LAYOUTS) <= set(FAMILIES)
    assert not any(revised_layout(family) for family in FIRST_LAYOUTS) and revised_layout("gptj") is None
    first = FAMILIES["llama"]
    monkeypatch.setitem(anatomy._KNOWN, "llama", replace(first, mlp=first.mlp[::-1]))
    revised = revised_layout("llama")
    assert revised and revised_layout("mistral") is None
    monkeypatch.setitem(anatomy._KNOWN, "llama", replace(first, gated=False))
    assert revised_layout("llama") not in (None, revised)
    monkeypatch.setitem(anatomy._KNOWN, "of-tomorrow", first)
    assert revised_layout("of-tomorrow"), "a family that came later says it"


def test_a_dense_model_in_scope_is_counted_as_dense() -> None:
    model = tiny("llama")
    report = achieved_sites(decoder_of(model), range(1), {})
    assert len(report) == 7 and all(e["asked"] == e["achieved"] == 0 for e in report.values())
    assert {entry["pattern"] for entry in report.values()} == {"unstructured"}


def refused(model: torch.nn.Module) -> str:
    with pytest.raises(UserError) as caught:
        decoder_of(model)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    return str(caught.value)


@pytest.mark.parametrize("family", ["mixtral", "gptj"])
def test_an_unknown_family_is_refused(family: str) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 64}
    if family == "mixtral":
        sizes |= {"intermediate_size": 16, "num_local_experts": 2, "num_key_value_heads": 2}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes))
    said = refused(model)
    assert said.startswith(f"the model family '{family}' has no layout; known: bloom, falcon, ") and "qwen3" in said


def test_experts_under_a_known_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layout that knows attention alone names too little of a mixture of experts."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 64}
    config = AutoConfig.for_model("mixtral", intermediate_size=64, num_local_experts=4, num_key_value_heads=2, **sizes)
    attention = FAMILIES["llama"].attention
    monkeypatch.setitem(anatomy._KNOWN, "mixtral", Anatomy("model.layers", attention, (), ""))
    said = refused(AutoModelForCausalLM.from_config(config))
    assert "the layout of family 'mixtral' names " in said and "% of the weights of block 0; at least 99%" in said


@pytest.mark.parametrize("left_out", ["q_proj", "down_proj"])
def test_a_layout_that_misses_weights_is_refused(left_out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(groups: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
        left = (tuple(name for name in group if not name.endswith(left_out)) for group in groups)
        return tuple(group for group in left if group)

    whole = FAMILIES["llama"]
    monkeypatch.setitem(
        anatomy._KNOWN, "llama", Anatomy(whole.blocks, without(whole.attention), without(whole.mlp), "")
    )
    assert "fused or expert weights are not covered" in refused(tiny("llama"))


@pytest.mark.parametrize("name", TINY)
def test_dropped_blocks_leave_the_others_as_they_were(name: str) -> None:
    """Without its first block, a model is its embedding, its other blocks (with their own masks) and its head."""
    model, whole = (tiny(name, num_hidden_layers=3, **three_types(name)) for _ in range(2))
    decoder, tokens = decoder_of(model), windows(2)
    decoder_of(whole).modules[0].register_forward_hook(
        lambda _, positional, output: (positional[0], *output[1:]) if isinstance(output, tuple) else positional[0]
    )
    operate(decoder, Plan(Cut.of_blocks([0])))
    assert len(decoder.modules) == model.config.num_hidden_layers == 2
    torch.testing.assert_close(model(tokens).logits, whole(tokens).logits, rtol=1e-4, atol=1e-4)
    untouched = tiny(name)
    operate(decoder_of(untouched), Plan())
    assert len(decoder_of(untouched).modules) == 2


def three_types(name: str) -> dict[str, list[str]]:
    types = ["full_attention", "sliding_attention", "full_attention"]
    return {"layer_types": types} if "layer_types" in TINY[name] else {}
