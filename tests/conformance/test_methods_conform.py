"""What every registered method promises, on every pattern, shape and dtype."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from helpers import LINEAR_METHODS as PLAIN
from helpers import METHODS, REFITTED, inputs, normal, pattern, same, seen_by
from torch import Tensor

from harness import catalogue
from harness.core.interfaces import LinearMethod, Pruned
from harness.core.pattern import NofM, misfit, satisfies
from harness.run import check_fit
from harness.runtime.errors import Refusal

PATTERNS = ["0", "0.3", "0.5", "0.9", "2of4", "4of8", "1of4", "2of8", "3of4"]
SHAPES = [(8, 16), (1, 64), (6, 128), (12, 200), (3, 264), (160, 24), (5, 131), (4, 1)]
LINEAR_METHODS = PLAIN | REFITTED
DTYPES = [torch.float32, torch.bfloat16]
every_method = pytest.mark.parametrize("name", LINEAR_METHODS)
every_pattern = pytest.mark.parametrize("asked", PATTERNS)


def material(name: str, shape: tuple[int, int], dtype: torch.dtype, tokens: int | None = None) -> tuple[Tensor, Any]:
    """A weight (O, I) without zeros, and what the method would have seen."""
    weight = normal(*shape, seed=shape[0], dtype=dtype)
    assert (weight != 0).all()
    return weight, seen_by(LINEAR_METHODS[name].statistic, inputs(tokens or 3 * shape[1] + 5, shape[1]))


@cache
def outcome(name: str, asked: str, shape: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Pruned]:
    weight, seen = material(name, shape, dtype)
    return weight, LINEAR_METHODS[name].prune(weight, seen, pattern(asked))


def test_the_table_holds_every_registered_method() -> None:
    assert set(METHODS) == set(catalogue.names("method")) >= {"magnitude", "wanda", "sparsegpt", "plugged"}
    assert all(isinstance(method, LinearMethod) for method in LINEAR_METHODS.values())
    assert catalogue.revision(METHODS["plugged"]) != catalogue.revision(METHODS["wanda"])  # a plugin's source counts


def outcomes(name: str, asked: str) -> Iterator[tuple[str, Tensor, Pruned]]:
    """What the method makes of every shape and dtype that can carry the pattern."""
    for shape, dtype in itertools.product(SHAPES, DTYPES):
        if misfit(pattern(asked), shape) is None:
            yield f"{shape} {dtype}", *outcome(name, asked, shape, dtype)


@every_pattern
@every_method
def test_quota(name: str, asked: str) -> None:
    """The share of zeros is the asked one, up to one weight per comparison group and ties of the threshold."""
    wanted = pattern(asked)
    for case, weight, pruned in outcomes(name, asked):
        removed, (rows, columns) = int((~pruned.kept).sum()), weight.shape
        if isinstance(wanted, NofM):
            assert removed == weight.numel() * (wanted.of - wanted.keep) // wanted.of, case
        elif wanted.sparsity == 0:
            assert removed == 0, case
        else:
            groups = max(rows, math.ceil(columns / getattr(LINEAR_METHODS[name], "blocksize", columns)))
            ties = int(weight.float().abs().unique(return_counts=True)[1].max())
            exact = weight.numel() * wanted.sparsity
            assert exact - groups <= removed <= exact + groups * ties, case


@every_pattern
@every_method
def test_pattern_holds(name: str, asked: str) -> None:
    wanted = pattern(asked)
    for case, _, pruned in outcomes(name, asked):
        assert satisfies(pruned.weight, wanted), case
        if isinstance(wanted, NofM):
            assert (pruned.kept.reshape(-1, wanted.of).sum(dim=1) == wanted.keep).all(), case


@every_pattern
@every_method
def test_kept_is_where_weights_stay(name: str, asked: str) -> None:
    for case, weight, pruned in outcomes(name, asked):
        assert pruned.kept.dtype == torch.bool and pruned.kept.shape == weight.shape, case
        assert pruned.weight.dtype == weight.dtype and pruned.weight.shape == weight.shape, case
        assert torch.isfinite(pruned.weight).all(), case
        assert torch.equal(pruned.weight != 0, pruned.kept), case


@every_pattern
@every_method
def test_nothing_given_is_changed_and_the_same_comes_twice(name: str, asked: str) -> None:
    for case, given, first in outcomes(name, asked):
        weight, seen = material(name, tuple(given.shape), given.dtype)
        before = copy.deepcopy((weight, seen))
        again = LINEAR_METHODS[name].prune(weight, seen, pattern(asked))
        assert same((weight, seen), before) and torch.equal(weight, given), case
        assert again.weight.data_ptr() != weight.data_ptr(), case
        assert torch.equal(again.weight, first.weight) and torch.equal(again.kept, first.kept), case


@pytest.mark.parametrize("dead", [False, True], ids=["seen", "dead"])
@pytest.mark.parametrize("asked", ["0", "4of4", "8of8"])
@pytest.mark.parametrize("dtype", DTYPES)
@every_method
def test_identity_at_zero_sparsity(name: str, dtype: torch.dtype, asked: str, dead: bool) -> None:
    tokens = inputs(64, 24)
    tokens[:, :3] *= not dead
    weight = normal(7, 24, dtype=dtype)
    pruned = LINEAR_METHODS[name].prune(weight, seen_by(LINEAR_METHODS[name].statistic, tokens), pattern(asked))
    assert torch.equal(pruned.weight, weight) and pruned.kept.all()


@pytest.mark.parametrize("asked", ["0.3", "0.5", "0.9", "2of4", "1of4"])
@pytest.mark.parametrize("dead", [0.1, 0.8, 1.0])
@every_method
def test_inputs_never_seen(name: str, dead: float, asked: str) -> None:
    """Zeros in the statistic give no infinity, no lost quota, no broken pattern."""
    method, wanted = LINEAR_METHODS[name], pattern(asked)
    tokens = inputs(300, 136)
    tokens[:, torch.randperm(136, generator=torch.Generator().manual_seed(0))[: round(dead * 136)]] = 0
    weight = normal(10, 136)
    pruned = method.prune(weight, seen_by(method.statistic, tokens), wanted)
    assert torch.isfinite(pruned.weight).all() and satisfies(pruned.weight, wanted)
    assert (pruned.weight[~pruned.kept] == 0).all()
    assert int((pruned.weight == 0).sum()) >= weight.numel() * wanted.sparsity - weight.shape[0]


@pytest.mark.parametrize("asked", ["0.5", "2of4"])
@pytest.mark.parametrize("tokens", [1, 5])
@every_method
def test_fewer_tokens_than_inputs(name: str, tokens: int, asked: str) -> None:
    """A Gram matrix without full rank is no obstacle."""
    weight, seen = material(name, (9, 200), torch.float32, tokens)
    pruned = LINEAR_METHODS[name].prune(weight, seen, pattern(asked))
    assert torch.isfinite(pruned.weight).all() and torch.equal(pruned.weight != 0, pruned.kept)
    assert int(pruned.kept.sum()) == pytest.approx(weight.numel() / 2, abs=9)


@pytest.mark.parametrize("asked", ["0.5", "2of4"])
@every_method
def test_a_transposed_weight_is_a_weight(name: str, asked: str) -> None:
    weight, seen = material(name, (16, 24), torch.float32)
    turned = weight.T.contiguous().T
    method, wanted = LINEAR_METHODS[name], pattern(asked)
    assert torch.equal(method.prune(turned, seen, wanted).weight, method.prune(weight, seen, wanted).weight)


@pytest.mark.parametrize("name", METHODS)
def test_a_width_that_does_not_fit_is_refused_before_work(name: str) -> None:
    sites = {"a": (4, 16), "b": (4, 18)}
    with pytest.raises(Refusal, match=r"^b cannot be pruned: its input width 18 is not divisible by 4"):
        check_fit(METHODS[name], dict.fromkeys(sites, pattern("2of4")), sites)
    check_fit(METHODS[name], dict.fromkeys(sites, pattern("0.5")), sites)
