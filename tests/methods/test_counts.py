"""What a block costs in calls, which is the same on every machine: products, factorisations, waiting for the device."""

from __future__ import annotations

import json
import sys
import types
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import inputs, linears, normal, pattern, seen_by, tiny, windows
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from harness.compress import prune
from harness.core import scaled, statistic
from harness.core.allocation import Budget
from harness.core.columns import prune_columns
from harness.core.costs import Work
from harness.core.interfaces import GroupedMethod
from harness.core.statistic import Gram, gram
from harness.data.corpora import EMBEDDED
from harness.methods.admm import ADMM
from harness.methods.alps import ALPS
from harness.methods.sparsegpt import SparseGPT
from harness.methods.wanda import Wanda
from harness.models.decoder import decoder_of
from harness.models.geometry import of_config

BATCHES = [windows(2, 12), windows(2, 12, seed=1)]
"""Of 24 tokens, so that what linears give has another shape than a Gram matrix (32, 32) or (56, 56)."""
WINDOWS = 4
INPUTS = 4
"""Distinct inputs of a LLaMA block: of q, k and v; of o; of gate and up; of down."""


class Calls(TorchDispatchMode):
    """Counts aten calls by name, and products by the shape of what they give."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.products: Counter[tuple[int, ...]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.names[name] += 1
        if name in ("mm", "addmm"):
            self.products[tuple(result.shape)] += 1
        return result


def of_one_block(method: Any) -> Calls:
    """What a third block adds: its two passes and its pruning."""
    counted = []
    for blocks in (2, 3):
        model = tiny("llama", num_hidden_layers=blocks)
        allocation = dict.fromkeys(linears(model, model.model.layers), pattern("0.5"))
        with Calls() as calls:
            prune(decoder_of(model), BATCHES, range(blocks), method, allocation)
        counted.append(calls)
    counted[1].names.subtract(counted[0].names)
    counted[1].products.subtract(counted[0].products)
    return counted[1]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The way of 16 bits on a GPU, taken on a CPU; counts what stands in for its kernel."""
    calls: Counter[str] = Counter()

    def add_lower(sums: Tensor, tokens: Tensor, before: float, weight: float) -> None:
        calls["products"] += 1
        sums.mul_(before).add_((tokens.T @ tokens).tril(), alpha=weight)

    kernel = types.ModuleType("harness.core.gram_gpu")
    kernel.add_lower = add_lower  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "harness.core.gram_gpu", kernel)
    monkeypatch.setattr(statistic, "is_short_on_gpu", lambda tensor: True)
    return calls


def test_a_block_by_the_released_sums() -> None:
    calls = of_one_block(SparseGPT())
    assert calls.products[32, 32] == 3 * WINDOWS, "a window of each input once, though six matrices read them"
    assert calls.products[56, 56] == WINDOWS
    assert calls.names["linalg_cholesky_ex"] == 2 * INPUTS, "twice for each input"
    assert calls.names["sort"] == calls.names["argsort"] == 0


def test_a_fast_block_waits_for_nothing(short: Counter[str]) -> None:
    calls = of_one_block(SparseGPT())
    assert short["products"] == 5 * len(BATCHES) * INPUTS, "one for each batch and input of each of five blocks"
    assert calls.names["linalg_cholesky_ex"] == INPUTS, "one for each input"
    assert calls.names["_local_scalar_dense"] == 0
    assert calls.names["sort"] == calls.names["argsort"] == 0


def test_wanda_sorts_nothing_and_factors_nothing() -> None:
    calls = of_one_block(Wanda())
    assert calls.names["sort"] == calls.names["argsort"] == calls.names["linalg_cholesky_ex"] == 0


@pytest.mark.parametrize(("asked", "most"), [("0.5", 6), ("2of4", 18)])
def test_calls_a_column(asked: str, most: int) -> None:
    """The released code takes 28 a column, unstructured."""
    factor = torch.linalg.cholesky(torch.eye(64) + 0.1, upper=True)
    with Calls() as calls:
        prune_columns(normal(8, 64), factor, factor.diagonal() ** 2, [pattern(asked)], [8])
    assert sum(calls.names.values()) / 64 <= most


def test_together_is_as_alone(short: Counter[str]) -> None:
    """The shorter factor and the stacked walk against the released way from the same sums."""
    tokens = inputs(300, 48)
    fast = gram.add(gram.init(48, torch.device("cpu")), tokens[None]) if gram.add else None
    assert isinstance(fast, Gram) and fast.fast and short["products"] == 1
    slow = seen_by(gram, tokens)
    weights, asked = [normal(12, 48), normal(20, 48, seed=1)], pattern("0.6")
    for ours, weight in zip(SparseGPT().prune_together(weights, fast, [asked, asked]), weights, strict=True):
        alone = SparseGPT().prune(weight, slow, asked)
        assert ours.ok is not None and bool(ours.ok)
        assert torch.equal(ours.kept, alone.kept)
        torch.testing.assert_close(ours.weight, alone.weight, rtol=1e-4, atol=1e-5)


def test_what_was_not_sound_is_done_again(short: Counter[str]) -> None:
    """Sums that are no Gram matrix: a first damping fails, the ladder finds one, and the record says which."""
    width = 16
    bad = torch.eye(width)
    bad[0, 1] = bad[1, 0] = 1.05
    seen = Gram(bad, 1, fast=True)
    method, weight = SparseGPT(), normal(8, width)
    (unchecked,) = method.prune_together([weight], seen, [pattern("0.5")])
    assert unchecked.ok is not None and not bool(unchecked.ok)
    again = method.prune(weight, seen, pattern("0.5"))
    assert again.note == "damping 0.1" and bool(torch.isfinite(again.weight).all())


@pytest.mark.parametrize(("method", "factors", "spectra"), [(ADMM(), INPUTS, 0), (ALPS(), 0, INPUTS)])
def test_matrices_that_read_the_same_share_what_is_costly(method: Any, factors: int, spectra: int) -> None:
    calls = of_one_block(method)
    assert (calls.names["linalg_cholesky_ex"], calls.names["_linalg_eigh"]) == (factors, spectra)


def test_alps_looks_once_for_matrices_in_step() -> None:
    """A GPU is waited for every third iteration, however many matrices read the same inputs."""
    seen, weights = seen_by(gram, inputs(100, 32)), [normal(16, 32, seed=seed) for seed in range(3)]
    with Calls() as calls:
        ALPS(iterations=30).prune_together(weights, seen, [pattern("0.6")] * 3)
    looks = calls.names["stack"]
    assert 0 < looks <= 10
    alone = [ALPS(iterations=30).prune(weight, seen_by(gram, inputs(100, 32)), pattern("0.6")) for weight in weights]
    for one, other in zip(alone, ALPS(iterations=30).prune_together(weights, seen, [pattern("0.6")] * 3), strict=True):
        assert torch.equal(one.kept, other.kept) and torch.equal(one.weight, other.weight)


@pytest.fixture(scope="module")
def first_block() -> list[tuple[Tensor, list[Tensor]]]:
    """Inputs (T, I) of the first block of a trained model, each with the matrices (O, I) that read it."""
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED / "embedded-llama", dtype=torch.float32)
    decoder, seen = decoder_of(model), {}
    linears = decoder.linears(0)
    for site, linear in linears.items():
        linear.register_forward_pre_hook(lambda _, given, site=site: seen.update({site: given[0].flatten(0, 1)}))
    text = [tokens % model.config.vocab_size for tokens in (windows(8, 64), windows(8, 64, seed=1))]
    with torch.no_grad():
        model(torch.cat(text))
    return [(seen[group[0]], [linears[site].weight.data for site in group]) for group in decoder.inputs(0)]


def flops(method: Any, block: list[tuple[Tensor, list[Tensor]]]) -> float:
    """Operations of all products while the matrices of a block are pruned, those that read one input together."""
    total = 0
    for tokens, weights in block:
        stats = seen_by(gram, tokens)
        with FlopCounterMode(display=False) as counter:
            if isinstance(method, GroupedMethod):
                method.prune_together(weights, stats, [pattern("0.6")] * len(weights))
            else:
                for weight in weights:
                    method.prune(weight, stats, pattern("0.6"))
        total += counter.get_total_flops()
    return total


@pytest.mark.parametrize("fast", [False, True])
def test_costs_are_those_of_the_arithmetic(
    fast: bool, first_block: list[tuple[Tensor, list[Tensor]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `make plan` counts of solvers against the operations of their products, both ways of computing them."""
    if fast:
        monkeypatch.setitem(scaled.ARITHMETIC, "cpu", scaled.ARITHMETIC["fast"])
    geometry = replace(of_config(json.loads((EMBEDDED / "embedded-llama" / "config.json").read_text())), blocks=1)
    work = Work(1, 8, 128, 256, 128, 2 if fast else 4, cuda=fast, fast=fast, budget=Budget(0.6))
    counted, foreseen = [], []
    for method in (ADMM(), ALPS()):
        cost = method.cost(geometry, work)
        counted.append(flops(method, first_block))
        foreseen.append(cost.operations + cost.halves + 2 * cost.factored)  # so narrow a factor is squared whole
    assert foreseen[0] == pytest.approx(counted[0])
    assert foreseen[1] / foreseen[0] == pytest.approx(counted[1] / counted[0], rel=0.15)
