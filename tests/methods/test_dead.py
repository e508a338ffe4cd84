"""Inputs that calibration never saw: `dead=prune` is the authors' code, `dead=keep` meets what was asked."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from helpers import inputs, normal, pattern, seen_by, tiny, windows
from oracles.slow import sparsegpt
from torch import Tensor

from harness import catalogue
from harness.compress import prune
from harness.core.interfaces import Pruned
from harness.core.pattern import NofM, Pattern, Unstructured, satisfies
from harness.core.statistic import Gram, gram
from harness.methods.isc import ISC
from harness.methods.sparsegpt import SparseGPT
from harness.methods.sparsellm import SparseLLM
from harness.models.decoder import decoder_of

OUTPUTS, INPUTS = 6, 24
DEAD = {"few": [1, 9], "a whole block": [0, 1, 2, 3, 4, 5, 6, 7, 12], "nearly all": [*range(5), *range(6, 24)]}
PATTERNS = ["0.3", "0.5", "0.8", "2of4", "1of4"]
WEIGHT = normal(OUTPUTS, INPUTS, seed=4)
METHODS = [SparseGPT(blocksize=8), ISC(blocksize=8), ISC(blocksize=8, variant="released")]


def seen(dead: list[int]) -> Gram:
    tokens = inputs(4 * INPUTS, INPUTS)
    tokens[:, dead] = 0
    return seen_by(gram, tokens)


def spared(dense: Tensor, dead: list[int], asked: Pattern, blocksize: int) -> Tensor:
    """True (O, I) for weights of dead inputs that a quota leaves, one weight at a time from the definition."""
    left = torch.zeros(dense.shape, dtype=torch.bool)
    left[:, dead] = True
    groups: list[tuple[list[tuple[int, int]], int]] = []
    if isinstance(asked, NofM):
        for row in range(len(dense)):
            for start in range(0, dense.shape[1], asked.of):
                places = [(row, column) for column in range(start, start + asked.of)]
                groups.append((places, asked.of - asked.keep))
    else:
        for start in range(0, dense.shape[1], blocksize):
            block = range(start, min(start + blocksize, dense.shape[1]))
            places = [(row, column) for row in range(len(dense)) for column in block]
            groups.append((places, int(len(places) * asked.sparsity)))
    for places, quota in groups:
        mine = sorted((abs(float(dense[place])), place) for place in places if place[1] in dead)  # ties: the earliest
        for _, place in mine[:quota]:
            left[place] = False
    return left


@pytest.mark.parametrize("asked", PATTERNS)
@pytest.mark.parametrize("dead", DEAD.values(), ids=list(DEAD))
def test_keeping_is_pruning_within_the_quota(dead: list[int], asked: str) -> None:
    """Against the column loop of the oracle for live weights, and the definition for dead ones."""
    wanted, state = pattern(asked), seen(dead)
    ours = SparseGPT(blocksize=8, dead="keep").prune(WEIGHT, state, wanted)
    how = {"keep": wanted.keep, "of": wanted.of} if isinstance(wanted, NofM) else {"sparsity": wanted.sparsity}
    expected, kept = sparsegpt(WEIGHT, state.matrix, damping=0.01, blocksize=8, **how)
    left, live = spared(WEIGHT, dead, wanted, 8), [column for column in range(INPUTS) if column not in dead]
    assert torch.equal(ours.kept[:, live], kept[:, live])
    torch.testing.assert_close(ours.weight[:, live].double(), expected[:, live], rtol=1e-3, atol=1e-4)
    assert torch.equal(ours.weight[:, dead], (WEIGHT * left)[:, dead])
    assert torch.equal(ours.kept[:, dead], left[:, dead])


@pytest.mark.parametrize("asked", PATTERNS)
@pytest.mark.parametrize("dead", DEAD.values(), ids=list(DEAD))
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_what_was_asked_is_met(method: Any, dead: list[int], asked: str) -> None:
    """Three column blocks of 48 weights, each with its quota (and the threshold, a live weight); or exactly N of M."""
    wanted = pattern(asked)
    kept = dataclasses.replace(method, dead="keep").prune(WEIGHT, seen(dead), wanted)
    zeros = int((kept.weight == 0).sum())
    if isinstance(wanted, Unstructured):
        quota = int(48 * wanted.sparsity)
        in_blocks = [6 * sum(start <= column < start + 8 for column in dead) for start in (0, 8, 16)]
        assert zeros == sum(quota + (count <= quota) for count in in_blocks)
    else:
        assert satisfies(kept.weight, wanted) and zeros == WEIGHT.numel() * wanted.sparsity
    pruned = method.prune(WEIGHT, seen(dead), wanted)
    assert int((pruned.weight == 0).sum()) >= zeros
    live = [column for column in range(INPUTS) if column not in dead]
    assert torch.equal(kept.weight[:, live], pruned.weight[:, live])


@pytest.mark.parametrize("asked", PATTERNS)
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_without_dead_inputs_it_is_the_same(method: Any, asked: str) -> None:
    for one, other in zip(
        method.prune(WEIGHT, seen([]), pattern(asked)),
        dataclasses.replace(method, dead="keep").prune(WEIGHT, seen([]), pattern(asked)),
        strict=True,
    ):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


@pytest.mark.parametrize("asked", PATTERNS)
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_together_is_each_alone(method: Any, asked: str) -> None:
    """The way of 16 bits on a GPU: several matrices in one walk, from one factor."""
    keeping = dataclasses.replace(method, dead="keep")
    slow = seen(DEAD["a whole block"])
    state = Gram(slow.matrix, slow.windows, fast=True)
    weights = [WEIGHT, normal(10, INPUTS, seed=5)]
    together = keeping.prune_together(weights, state, [pattern(asked)] * 2)
    for weight, ours in zip(weights, together, strict=True):
        alone: Pruned = keeping.prune(weight, slow, pattern(asked))
        assert torch.equal(ours.kept, alone.kept)
        torch.testing.assert_close(ours.weight, alone.weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_spared_weights_are_dense_to_the_bit(dtype: torch.dtype) -> None:
    weight, dead = WEIGHT.to(dtype), DEAD["nearly all"]
    ours = SparseGPT(blocksize=8, dead="keep").prune(weight, seen(dead), pattern("0.5"))
    left = spared(weight, dead, pattern("0.5"), 8)
    assert ours.weight.dtype == dtype and torch.equal(ours.weight[:, dead], (weight * left)[:, dead])


@pytest.mark.parametrize("epochs", [1, 3])
def test_sparsellm_keeps_through_its_inner_method(epochs: int) -> None:
    """28 of 56 neurons never fire: more than 30 % of the inputs of fc2. Later epochs prune by p, where they may."""
    model = tiny("opt")
    for block in model.model.decoder.layers:
        block.fc1.bias[:28] = -1e4
    dense = [block.fc2.weight.clone() for block in model.model.decoder.layers]
    decoder = decoder_of(model)
    sites = [site for index in range(2) for site in decoder.linears(index)]
    method = SparseLLM(inner=SparseGPT(dead="keep"), epochs=epochs)
    prune(decoder, [windows(8)], range(2), method, dict.fromkeys(sites, pattern("0.3")))
    for before, block in zip(dense, model.model.decoder.layers, strict=True):
        weight = block.fc2.weight
        quota, zeros = int(32 * 56 * 0.3), int((weight == 0).sum())
        assert zeros in (quota, quota + 1)  # the threshold, where a live weight is one
        if epochs == 1:
            assert zeros == quota and torch.equal(weight[:, :28], before[:, :28] * (weight[:, :28] != 0))


def test_a_default_that_came_later_changes_no_identity() -> None:
    for name in ("sparsegpt", "isc"):
        plain = catalogue.build("method", {"name": name})
        assert "dead" not in catalogue.describe(plain)
        assert catalogue.describe(dataclasses.replace(plain, dead="keep"))["dead"] == "keep"
