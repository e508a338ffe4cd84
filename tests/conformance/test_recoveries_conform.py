"""What every recovery that trains promises, found by enumeration, and a few of the test's own."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from helpers import components, linears, pattern, tiny, windows
from torch import Tensor, nn

from harness import catalogue
from harness.calibration.cache.resume import CheckpointPolicy
from harness.core.pattern import NofM, keep, satisfies
from harness.core.recoveries import Recovery, Selector, WholeRecovery
from harness.core.rng import rng
from harness.models.decoder import decoder_of
from harness.runtime.errors import Refusal
from harness.session import _form
from harness.training.adapted import Adapted
from harness.training.checkpoints import Checkpoints
from harness.training.loop import Text, nll
from harness.training.recover import View, nonzeros, trained
from tests.conformance.recoveries import GroupedScales, Importance, LoraThenMask, MaskedLora, NormsAndBiases, Sensitive

BLOCKS, LENGTH = 3, 24
QUICK: dict[str, Any] = {"tokens": 4 * 2 * LENGTH, "batch": 2, "length": LENGTH, "lr": 1e-2, "checks": 2}
OURS = {name: it for name, it in components("recovery").items() if isinstance(it, Recovery)}
ALL = OURS | {
    "masklora": MaskedLora(), "lora_prune": LoraThenMask(), "spp": GroupedScales(), "speft": Sensitive(),
    "ist": Importance(),
}  # fmt: skip
every_recovery = pytest.mark.parametrize("name", ALL)
TEXT = Text(windows(7, LENGTH), windows(3, LENGTH, seed=1))


def quick(name: str, **changes: Any) -> Any:
    return dataclasses.replace(ALL[name], **QUICK | changes)


def pruned(sparsity: str = "0.6", family: str = "llama", dtype: torch.dtype = torch.float32) -> View:
    """A tiny model of three blocks, the last two of which have lost their smallest weights."""
    model = tiny(family, dtype, num_hidden_layers=BLOCKS)
    decoder, scope = decoder_of(model), range(1, BLOCKS)
    for index in scope:
        for linear in decoder.linears(index).values():
            linear.weight.data *= keep(linear.weight.float().abs(), pattern(sparsity))
    return View(decoder, None, nonzeros(decoder, scope), [], scope, rng(0, "test"))


def recovered(recovery: Any, view: View, seed: int = 0) -> dict[str, Any]:
    return trained("it", recovery, view, TEXT, seed, lambda begins: Checkpoints(CheckpointPolicy(), begins))


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: one.detach().clone() for name, one in model.state_dict().items()}


def in_scope(view: View) -> dict[str, nn.Linear]:
    return {site: linear for index in view.scope for site, linear in view.decoder.linears(index).items()}


def test_the_table_holds_every_recovery_but_none() -> None:
    whole = {name for name, it in components("recovery").items() if isinstance(it, WholeRecovery)}
    assert OURS.keys() | whole == set(catalogue.names("recovery")) and "none" in whole
    assert {"kept_weights", "lora"} <= OURS.keys()
    assert isinstance(ALL["ist"], Selector) and not isinstance(ALL["lora"], Selector)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@every_recovery
def test_training_begins_with_the_pruned_model(name: str, dtype: torch.dtype) -> None:
    view = pruned(dtype=dtype)
    with torch.no_grad():
        before = float(nll(view.decoder.model, TEXT.held_out))
    facts = recovered(quick(name), view)
    assert facts["runs"][0]["curve"][0]["held_out"] == pytest.approx(before, rel=1e-6)
    if name == "lora_prune":  # what is merged is not what was trained
        return
    with torch.no_grad():
        after = float(nll(view.decoder.model, TEXT.held_out))
    assert facts["loss"] == {"before": pytest.approx(before, rel=1e-6), "after": pytest.approx(after, rel=1e-6)}
    train = [point["train"] for point in facts["runs"][0]["curve"][1:]]
    assert train[-1] < before and all(map(torch.isfinite, torch.tensor(train)))


@pytest.mark.parametrize("sparsity", ["0.6", "2of4"])
@pytest.mark.parametrize("family", ["llama", "opt", "phi3"])
@every_recovery
def test_zeros_and_patterns_stay(name: str, family: str, sparsity: str) -> None:
    view, recovery = pruned(sparsity, family), quick(name)
    before = {site: linear.weight.clone() for site, linear in in_scope(view).items()}
    facts = recovered(recovery, view)
    changed = 0
    for site, linear in in_scope(view).items():
        changed += int((linear.weight != before[site]).sum())
        if recovery.keeps_zeros:
            assert not linear.weight[before[site] == 0].any()
            assert sparsity == "0.6" or satisfies(linear.weight, NofM(2, 4))
    total = sum(weight.numel() for weight in before.values())
    assert facts["moved"] == changed / total > 0
    if name == "speft":
        assert changed <= facts["trained"] < 0.2 * total
    assert (facts["filled"] == 0) is recovery.keeps_zeros


@every_recovery
def test_merged_equals_adapted(name: str) -> None:
    view, recovery = pruned(), quick(name)
    generator = torch.Generator().manual_seed(0)
    sites = in_scope(view)
    adapters = {site: recovery.adapter(one.weight, view.kept[site], generator) for site, one in sites.items()}
    parts = {
        f"{site}/{part}": torch.randn(tensor.shape, generator=generator) * 0.1
        for site, one in adapters.items()
        for part, tensor in one.parts.items()
    }
    adapted = Adapted(view.decoder, adapters, parts)
    with torch.no_grad():
        bare = view.decoder.model(TEXT.held_out).logits
        with adapted.in_place():
            before = view.decoder.model(TEXT.held_out).logits
        adapted.merge()
        after = view.decoder.model(TEXT.held_out).logits
    if name == "lora_prune":
        assert float((after - before).abs().max()) > 1e-2
        return
    assert float((before - bare).abs().max()) > 1e-2
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sparsity", ["0.6", "2of4", "0"])
@every_recovery
def test_the_trained_count_is_its_formula(name: str, sparsity: str) -> None:
    view, recovery = pruned(sparsity), quick(name)
    counted = sum(
        recovery.trained(*linear.weight.shape, float(view.kept[site].double().mean()))
        for site, linear in in_scope(view).items()
    )
    assert recovered(recovery, view)["trained"] == pytest.approx(counted, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_recovery
def test_all_else_stays_and_the_model_is_plain(name: str, dtype: torch.dtype) -> None:
    view = pruned(dtype=dtype)
    model = view.decoder.model
    form, before = _form(model), tensors(model)
    recovered(quick(name), view)
    assert _form(model) == form and all(parameter.grad is None for parameter in model.parameters())
    may_change = {f"{site}.weight" for site in in_scope(view)}
    assert len(may_change) == len(linears(model, view.decoder.modules)) * 2 // 3
    for tensor, value in tensors(model).items():
        assert torch.equal(value, before[tensor]) == (tensor not in may_change), tensor


@every_recovery
def test_it_is_decided_by_its_seed_and_not_by_how_memory_is_saved(name: str) -> None:
    def weights(seed: int = 0, **changes: Any) -> Tensor:
        view = pruned()
        recovered(quick(name, **changes), view, seed)
        return torch.cat([linear.weight.flatten() for linear in in_scope(view).values()])

    first = weights()
    assert torch.equal(weights(checkpointing=True), first)
    assert not torch.equal(weights(seed=1), first)


@pytest.mark.parametrize(("family", "vectors"), [("llama", 2), ("opt", 10)])
def test_norms_and_biases_of_blocks_may_train(family: str, vectors: int) -> None:
    """Two norms a block in LLaMA; in OPT each with a bias, and the biases of six matrices."""
    view = pruned(family=family)
    model = view.decoder.model
    form, before = _form(model), tensors(model)
    facts = recovered(dataclasses.replace(NormsAndBiases(), **QUICK), view)
    with torch.no_grad():
        assert facts["loss"]["after"] == pytest.approx(float(nll(model, TEXT.held_out)), rel=1e-6)
    assert facts["loss"]["after"] != facts["loss"]["before"] and _form(model) == form
    changed = {name for name, value in tensors(model).items() if not torch.equal(value, before[name])}
    assert changed <= {name for name, one in before.items() if one.dim() == 1}
    assert len(changed) == 2 * vectors and facts["trained"] == sum(before[name].numel() for name in changed)
    with pytest.raises(Refusal, match="finds no matrix in scope to train"):
        recovered(quick("lora"), dataclasses.replace(view, scope=[], kept={}))
