"""Asymmetric calibration, against the least-squares problem that it says it solves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers import inputs, linears, normal, pattern, seen_by, tiny, windows
from torch import Tensor

from harness.core.interfaces import Difference
from harness.core.statistic import Gram, gram
from harness.methods.asymmetric import Asymmetric
from harness.methods.magnitude import Magnitude
from harness.methods.sparsegpt import SparseGPT
from harness.methods.sparsellm import SparseLLM
from harness.methods.wanda import Wanda
from harness.models.decoder import decoder_of
from harness.run import prune
from harness.runtime.errors import UserError


@dataclass
class OneMatrix:
    """A block of one matrix, whose inputs are x in the pruned and x̄ in the dense model: a `ReferencedView`."""

    weight: Tensor
    x: Tensor
    x_dense: Tensor
    drift: Tensor | None

    groups = (("w",),)

    @property
    def weights(self) -> dict[str, Tensor]:
        return {"w": self.weight}

    def difference(self, sites: Any) -> Difference:
        seen = seen_by(gram, self.x)
        assert isinstance(seen, Gram)
        drift = None if self.drift is None else 2 * self.drift.T @ self.x
        return Difference(seen, 2 * (self.x_dense - self.x).T @ self.x, drift)

    def observe(self, statistic: Any) -> dict[str, Any]:
        return {site: seen_by(one, self.x) for site, one in statistic.items()}

    def write(self, site: str, weight: Tensor) -> None:
        self.written = weight


class Unpruned(Magnitude):
    """Gives the weight back, so that what it was given is seen."""

    def prune(self, weight: Tensor, seen: Any, asked: Any) -> Any:
        return super().prune(weight, seen, pattern("0"))


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (0.75, 0.5), (0.0, 1.0)])
def test_the_target_is_the_least_squares_answer(alpha: float, beta: float) -> None:
    """argmin ‖t − Ŵ x‖² + λ ‖Ŵ − W‖², by a solver that knows neither G nor its inverse."""
    x, weight = inputs(90, 20), normal(6, 20)
    x_dense, drift = x + 0.3 * inputs(90, 20, seed=5), normal(90, 6, seed=9)
    block = OneMatrix(weight, x, x_dense, drift)
    found = Asymmetric(Unpruned(), alpha, beta, damping=0.05).prune_block(block, {"w": pattern("0.5")})["w"].weight
    target = x @ weight.T + alpha * (x_dense - x) @ weight.T + beta * drift
    damping = 0.05 * (x**2).sum(dim=0).mean()
    rows = torch.cat([x, damping.sqrt() * torch.eye(20)]).double()
    wanted = torch.linalg.lstsq(rows, torch.cat([target, damping.sqrt() * weight.T]).double()).solution.T
    torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-4)


def test_without_both_terms_it_is_the_inner_method() -> None:
    x, weight = inputs(90, 24), normal(6, 24)
    block = OneMatrix(weight, x, x + 1, normal(90, 6))
    for inner in (SparseGPT(), Wanda(), Magnitude()):
        alone = inner.prune(weight, seen_by(inner.statistic, x), pattern("2of4"))
        found = Asymmetric(inner, alpha=0.0, beta=0.0).prune_block(block, {"w": pattern("2of4")})["w"]
        assert torch.equal(found.weight, alone.weight) and torch.equal(block.written, alone.weight)


def test_a_matrix_of_which_nothing_is_asked_stays() -> None:
    x, weight = inputs(90, 24), normal(6, 24)
    block = OneMatrix(weight, x, x + 1, normal(90, 6))
    assert torch.equal(Asymmetric().prune_block(block, {"w": pattern("0")})["w"].weight, weight)


@pytest.mark.parametrize("asked", ["0.7", "2of4"])
@pytest.mark.parametrize("name", ["llama", "opt"])
def test_outputs_are_nearer_to_the_dense_models(name: str, asked: str) -> None:
    """On the calibration windows, where the sums that it solves with are exact."""
    batches, errors = [windows(16, 32), windows(16, 32, seed=1)], {}
    dense = tiny(name)
    wanted = [dense(batch, use_cache=False).logits for batch in batches]
    for label, method in {"alone": SparseGPT(), "asymmetric": Asymmetric(SparseGPT())}.items():
        model = tiny(name)
        decoder = decoder_of(model)
        sites = dict.fromkeys(linears(model, decoder.modules), pattern(asked))
        prune(decoder, batches, range(2), method, sites)
        errors[label] = sum(
            float((model(b, use_cache=False).logits - w).square().sum()) for b, w in zip(batches, wanted, strict=True)
        )
    assert errors["asymmetric"] < errors["alone"]


def test_settings_that_cannot_be_are_one_sentence() -> None:
    for settings in ({"alpha": 1.5}, {"beta": -0.1}, {"damping": 0.0}, {"inner": SparseLLM()}):
        with pytest.raises(UserError):
            Asymmetric(**settings)


@pytest.mark.parametrize("settings", ["allocator.pruner=null", "allocator.pruner=asymmetric"])
def test_a_search_cannot_prune_with_it(settings: str, typed: Callable, options: list[str]) -> None:
    """It writes each matrix before it looks at the next; a database of levels has no place for that."""
    typed_options = [*options, "method=asymmetric", "allocator=msp", "allocator.generations=1", settings]
    refused = typed(*typed_options)
    assert refused.status == 2 and refused.err == (
        "error: a search prunes all matrices to many levels, and method=asymmetric writes each as it goes; "
        "take allocator.pruner=alps or sparsegpt.\n"
    )
    assert typed("-m", *typed_options).record["status"] == "skipped"
