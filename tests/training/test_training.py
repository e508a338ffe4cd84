"""The training loop against loops written another way: plain AdamW on masked weights, and peft's LoRA."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import linears, pattern, tiny, windows
from torch import Tensor, nn

from harness.calibration.cache.resume import CheckpointPolicy
from harness.core.pattern import keep
from harness.core.rng import rng
from harness.core.training import Training, share_at
from harness.models.decoder import decoder_of
from harness.recovery.kept_weights import KeptWeights
from harness.recovery.lora import Lora
from harness.runtime.errors import Failure, UserError
from harness.runtime.warn import collected_warnings
from harness.training import loop
from harness.training.checkpoints import Checkpoints
from harness.training.loop import Text
from harness.training.recover import View, nonzeros, trained
from harness.training.scores import Scores
from tests.conformance.recoveries import Importance

LENGTH = 24
TEXT = Text(windows(7, LENGTH), windows(3, LENGTH, seed=1))
QUICK: dict[str, Any] = {"tokens": 5 * 2 * LENGTH, "batch": 2, "length": LENGTH, "lr": 1e-2, "checks": 2}


def pruned(dtype: torch.dtype = torch.float32) -> View:
    model = tiny("llama", dtype)
    decoder, scope = decoder_of(model), range(2)
    for linear in linears(model, decoder.modules).values():
        linear.weight.data *= keep(linear.weight.float().abs(), pattern("0.6"))
    return View(decoder, None, nonzeros(decoder, scope), [], scope, rng(0, "test"))


def recovered(recovery: Any, view: View, keeping: CheckpointPolicy | None = None, seed: int = 0) -> dict[str, Any]:
    return trained("it", recovery, view, TEXT, seed, lambda begins: Checkpoints(keeping or CheckpointPolicy(), begins))


def weights(view: View) -> dict[str, Tensor]:
    return {
        f"{site}.weight": one.weight.detach().clone()
        for site, one in linears(view.decoder.model, view.decoder.modules).items()
    }


def by_hand(model: nn.Module, parameters: list[Tensor], settings: Training, after_gradients: Any = None) -> None:
    """AdamW on the model's own loss, with the windows of every step as the harness draws them."""
    steps = math.ceil(settings.tokens / (settings.batch * LENGTH))
    optimiser = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0)
    drawn = [
        index
        for nth in range(9)
        for index in rng(0, f"pass {nth} of a recovery").sample(range(len(TEXT.windows)), len(TEXT.windows))
    ]
    for step in range(steps):
        rows = TEXT.windows[drawn[step * settings.batch : (step + 1) * settings.batch]]
        optimiser.zero_grad()
        model(rows, labels=rows).loss.backward()
        if after_gradients:
            after_gradients()
        warm = math.ceil(settings.warmup * steps)
        falling = 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))
        optimiser.param_groups[0]["lr"] = settings.lr * ((step + 1) / warm if step < warm else falling)
        optimiser.step()


def test_kept_weights_are_trained_as_with_masked_gradients() -> None:
    settings = KeptWeights(**QUICK, clip=1.0)
    view, other = pruned(), pruned()
    recovered(settings, view)
    matrices = {site: one.weight for site, one in linears(other.decoder.model, other.decoder.modules).items()}
    for weight in matrices.values():
        weight.requires_grad_(True)

    def mask() -> None:
        for site, weight in matrices.items():
            weight.grad *= other.kept[site]
        torch.nn.utils.clip_grad_norm_(matrices.values(), 1.0)

    by_hand(other.decoder.model, list(matrices.values()), settings, mask)
    for name, weight in weights(view).items():
        torch.testing.assert_close(weight, matrices[name.removesuffix(".weight")].detach(), rtol=1e-5, atol=2e-6)


def test_lora_is_that_of_peft() -> None:
    peft = pytest.importorskip("peft")
    settings = Lora(**QUICK, clip=0.0, rank=4, alpha=8)
    view, other = pruned(), pruned()
    recovered(settings, view)
    sites = list(linears(other.decoder.model, other.decoder.modules))
    config = peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, bias="none", target_modules=sites)
    model = peft.get_peft_model(other.decoder.model, config).eval()
    for site in sites:
        generator = torch.Generator().manual_seed(rng(0, f"recovery of {site}").randrange(2**63))
        module = model.base_model.model.get_submodule(site)
        adapter = settings.adapter(module.base_layer.weight, view.kept[site], generator)
        module.lora_A["default"].weight.data.copy_(adapter.parts["A"])
        assert not module.lora_B["default"].weight.any()
    by_hand(model, [one for one in model.parameters() if one.requires_grad], settings)
    theirs = dict(model.merge_and_unload().named_parameters())
    for name, weight in weights(view).items():
        torch.testing.assert_close(weight, theirs[name].detach(), rtol=1e-5, atol=1e-5)


def test_lora_begins_as_in_peft() -> None:
    """A within ±1/√I, evenly."""
    adapter = Lora(rank=64).adapter(torch.zeros(8, 400), torch.ones(8, 400), torch.Generator().manual_seed(0))
    a = adapter.parts["A"]
    assert a.shape == (64, 400) and 0.9 / 20 < float(a.abs().max()) <= 1 / 20
    assert float(a.std()) == pytest.approx(1 / 20 / 3**0.5, rel=0.02)


def test_a_batch_in_pieces_is_the_same_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, pieces = pruned(), pruned()
    settings = KeptWeights(**QUICK | {"batch": 5})
    facts = recovered(settings, whole)
    monkeypatch.setitem(loop.TOKENS_AT_ONCE, "cpu", 2 * LENGTH)
    again = recovered(settings, pieces)
    assert again["loss"]["after"] == pytest.approx(facts["loss"]["after"], rel=1e-4)
    for name, weight in weights(pieces).items():
        torch.testing.assert_close(weight, weights(whole)[name], rtol=1e-3, atol=1e-3)


def test_memory_that_runs_out_is_a_smaller_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    own, asked = loop.nll, []

    def scarce(model: nn.Module, tokens: Tensor) -> Tensor:
        asked.append(len(tokens))
        if len(tokens) > 1:
            raise torch.OutOfMemoryError("no room")
        return own(model, tokens)

    monkeypatch.setattr(loop, "nll", scarce)
    with collected_warnings() as notes:
        facts = recovered(KeptWeights(**QUICK), pruned())
    assert notes == ["batch of recovery halved to 1 after running out of memory"] and asked[0] == 2
    assert facts["loss"]["after"] < facts["loss"]["before"]


def test_the_best_of_several_learning_rates_is_taken() -> None:
    single = {rate: recovered(KeptWeights(**QUICK | {"lr": rate}), pruned()) for rate in (1e-4, 1e-2, 3e-3)}
    view = pruned()
    facts = recovered(KeptWeights(**QUICK | {"lr": (1e-4, 1e-2, 3e-3)}), view)
    best = min(single, key=lambda rate: single[rate]["loss"]["after"])
    assert facts["lr"] == best and facts["loss"] == single[best]["loss"]
    assert [run["curve"] for run in facts["runs"]] == [one["runs"][0]["curve"] for one in single.values()]
    alone = pruned()
    recovered(KeptWeights(**QUICK | {"lr": best}), alone)
    assert all(torch.equal(weight, weights(alone)[name]) for name, weight in weights(view).items())


def test_a_learning_rate_that_diverges() -> None:
    view = pruned()
    before = weights(view)
    with pytest.raises(
        Failure, match=r"^the recovery 'it' diverged at every learning rate \(step \d of 5: the loss is"
    ):
        recovered(KeptWeights(**QUICK | {"lr": 1e30, "warmup": 0.0}), view)
    assert all(torch.equal(weight, before[name]) for name, weight in weights(view).items())
    with collected_warnings() as notes:
        facts = recovered(KeptWeights(**QUICK | {"lr": (1e30, 1e-2), "warmup": 0.0}), view)
    assert facts["lr"] == 1e-2 and "stopped" in facts["runs"][0] and facts["loss"]["after"] < facts["loss"]["before"]
    assert len(notes) == 1 and notes[0].startswith("training at the learning rate 1e+30 stopped at step ")


class Killed(BaseException):
    """What ends a process."""


@pytest.mark.parametrize(("stop", "kept"), [(1, 0), (4, 3), (6, 4), (7, 6), (10, 9)])
def test_training_goes_on_to_the_bit(stop: int, kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in a step of the first or second learning rate (of five steps each), with blocks that take turns.

    The last step of a learning rate is kept only with the first of the next.
    """
    recovery = Importance(**QUICK | {"lr": (1e-2, 3e-3)})
    whole, cut = pruned(), pruned()
    facts = recovered(recovery, whole)
    keeping = CheckpointPolicy(tmp_path / "blocks_0", "mine", every=0)
    own, count = loop._Loop._step, [0]

    def counted(self: Any, step: int, rate: float) -> str:
        count[0] += 1
        if count[0] == stop:
            raise Killed
        return own(self, step, rate)

    monkeypatch.setattr(loop._Loop, "_step", counted)
    with pytest.raises(Killed):
        recovered(recovery, cut, keeping)
    with collected_warnings() as notes:
        again = recovered(recovery, cut, keeping)
    assert count[0] - stop == 10 - kept and bool(notes) is (kept > 0)
    assert again == facts
    assert all(torch.equal(weight, weights(whole)[name]) for name, weight in weights(cut).items())


def test_a_checkpoint_of_another_model_is_not_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keeping = CheckpointPolicy(tmp_path / "blocks_0", "mine", every=0)
    recovered(KeptWeights(**QUICK), pruned(), keeping)
    (left,) = keeping.folder.glob("training_*.safetensors")
    other = pruned()
    other.decoder.block(0).mlp.up_proj.weight.data *= 2
    with collected_warnings() as notes:
        recovered(KeptWeights(**QUICK), other, keeping)
    assert notes == [f"{left} is damaged or of another run; training begins anew"]


def test_float16_lowers_its_scale_until_gradients_are_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "HALF_SCALE", 2.0**40)  # beyond what float16 holds
    facts = recovered(KeptWeights(**QUICK), pruned(torch.float16))
    assert facts["loss"]["after"] < facts["loss"]["before"]


def test_a_selector_decides_what_trains() -> None:
    recovery = Importance(**QUICK | {"clip": 0.0})
    view = pruned()
    own, moved = loop._Loop._step, []

    def step(self: Any, step: int, rate: float) -> str:
        before = {name: part.detach().clone() for name, part in self.adapted.parts.items()}
        reason = own(self, step, rate)
        changed = {name for name, part in self.adapted.parts.items() if not torch.equal(part, before[name])}
        moved.append({int(name.split(".")[2]) for name in changed})
        return reason

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Loop, "_step", step)
        recovered(recovery, view)
    assert moved == [set(chosen) for _, chosen in recovery.seen] and {0} in moved and {1} in moved


def test_scores_are_the_gradients_of_the_weights() -> None:
    view, other = pruned(), pruned()
    matrices = {site: one.weight for site, one in linears(other.decoder.model, other.decoder.modules).items()}
    for weight in matrices.values():
        weight.requires_grad_(True)
    other.decoder.model(TEXT.windows, labels=TEXT.windows).loss.backward()
    plain = {site: one.weight.data for site, one in linears(view.decoder.model, view.decoder.modules).items()}
    for checkpointing in (False, True):
        scores = Scores(view.decoder, plain, view.kept, TEXT.windows, 0, checkpointing)
        for site, gradient in scores.gradients(99).items():
            torch.testing.assert_close(gradient, matrices[site].grad, rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for parameter in view.decoder.model.parameters())


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_learning_rates_rise_and_fall(schedule: Any) -> None:
    settings = Training(warmup=0.1, schedule=schedule)
    shares = [share_at(settings, step, 100) for step in range(100)]
    assert shares[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    half = {"cosine": 0.5, "linear": 0.5, "constant": 1.0}[schedule]
    assert shares[10] == 1.0 and shares[55] == pytest.approx(half)
    assert (shares[99] < 0.02) is (schedule != "constant")


@pytest.mark.parametrize(
    "changes", [{"tokens": 0}, {"lr": -1.0}, {"lr": ()}, {"length": 1}, {"warmup": 2.0}, {"batch": 0}]
)
def test_settings_that_cannot_be(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^recovery\.\w+"):
        dataclasses.replace(Training(), **changes)
