"""What is shared is what would be found again; dense inputs against a plain loop over matrices; a store's limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from helpers import METHODS, same, seen_by, tiny, windows
from torch import Tensor

from harness.calibration.cache import reuse as shared
from harness.calibration.cache.reuse import ReuseCache, Store, bytes_of, name_of
from harness.calibration.walk.batches import batched
from harness.calibration.walk.blocks import stream
from harness.calibration.walk.stream import Stream
from harness.compress import prune
from harness.core.allocation import Allocation
from harness.core.linalg import damped_inverse
from harness.core.pattern import Unstructured
from harness.core.statistic import Gram, SquaredNorms, Statistic, gram, squared_norms, together
from harness.models.decoder import decoder_of

CPU = torch.device("cpu")
TOKENS = windows(4)
EVERYTHING = 1 << 40


def levels(model: Any, *values: float) -> Allocation:
    """One sparsity per block."""
    decoder = decoder_of(model)
    return {site: Unstructured(value) for index, value in enumerate(values) for site in decoder.linears(index)}


def pruned(name: str, allocation: Allocation, reuse: ReuseCache | None, scope: range) -> tuple[dict[str, Tensor], Any]:
    """The matrices of a fresh tiny model after pruning, and what was told."""
    model = tiny("llama", num_hidden_layers=len(scope))
    method = reuse.method(METHODS[name], allocation) if reuse else METHODS[name]
    told: dict[str, Any] = {}
    prune(decoder_of(model), batched(TOKENS), scope, method, allocation, told, reuse.walk if reuse else stream)
    return {name: weight.detach() for name, weight in model.named_parameters()}, told


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(weight, other[name]) for name, weight in one.items())


def inputs_of_dense(name: str) -> dict[str, Tensor]:
    """Site → every window's input (N, L, I), from whole forwards of the dense model."""
    model, caught = tiny(name), {}
    decoder = decoder_of(model)
    for index in range(2):
        for site, linear in decoder.linears(index).items():
            linear.register_forward_pre_hook(
                lambda _, given, site=site: caught.__setitem__(
                    site, given[0].reshape(len(TOKENS), -1, given[0].shape[-1])
                )
            )
    model(TOKENS)
    return caught


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "isc", "magnitude"])
@pytest.mark.parametrize("limit", [0, 20_000, EVERYTHING])
def test_dense_inputs_are_those_of_the_whole_dense_model(family: str, method: str, limit: int) -> None:
    """Each matrix alone on what the dense model gives it; twice, the second time from what was kept, if any was."""
    inputs, model, one = inputs_of_dense(family), tiny(family), METHODS[method]
    allocation = levels(model, 0.5, 0.7)
    expected = {
        site: one.prune(linear.weight.data, seen_by(one.statistic, *inputs[site]), allocation[site]).weight
        for index in range(2)
        for site, linear in decoder_of(model).linears(index).items()
    }
    reuse = ReuseCache(Store(CPU, limit), Store(CPU), "these windows", dense_inputs=True)
    for _ in range(2):
        reuse.store.point += 1
        changed = tiny(family)
        prune(decoder_of(changed), batched(TOKENS), range(2), one, allocation, None, reuse.walk)
        assert equal({site: changed.get_submodule(site).weight.data for site in expected}, expected)
        assert reuse.store.used() <= limit


def test_dense_inputs_are_observed_and_factorised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    count = {"forwards": 0, "factorisations": 0}
    run_piece = Stream.run_piece

    def forward(*given: Any) -> Any:
        count["forwards"] += 1
        return run_piece(*given)

    def factorise(*given: Any) -> Any:
        count["factorisations"] += 1
        return damped_inverse(*given)

    monkeypatch.setattr(Stream, "run_piece", forward)
    monkeypatch.setattr("harness.core.statistic.damped_inverse", factorise)
    reuse = ReuseCache(Store(CPU, EVERYTHING), Store(CPU), "these windows", dense_inputs=True)
    model = tiny("llama")
    for sparsity in (0.4, 0.5, 0.6, 0.7):
        pruned("sparsegpt", levels(model, sparsity, sparsity), reuse, range(2))
    assert count == {"forwards": 2, "factorisations": 8}


def test_the_order_of_a_weight_is_found_once() -> None:
    """The second point takes those of all 14 matrices from the first."""
    reuse = ReuseCache(Store(CPU, EVERYTHING), Store(CPU))
    for taken, sparsity in ((0, 0.4), (14, 0.5)):
        reuse.store.point += 1
        allocation = levels(tiny("llama"), sparsity, sparsity)
        assert_same(pruned("magnitude", allocation, reuse, range(2)), pruned("magnitude", allocation, None, range(2)))
        assert reuse.tally["orders"] == taken


PREFIXES = [(0.5, 0.5, 0.5), (0.5, 0.5, 0.7), (0.5, 0.6, 0.5), (0.6, 0.5, 0.5), (0.5, 0.5, 0.5)]


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "sparsellm", "magnitude"])
def test_equal_prefixes_are_taken_over(method: str) -> None:
    """Blocks taken: none; two; one; none; all three."""
    reuse = ReuseCache(Store(CPU, EVERYTHING), Store(CPU, EVERYTHING), "these windows")
    taken = []
    for values in PREFIXES:
        reuse.store.point += 1
        before = reuse.tally["blocks"]
        allocation = levels(tiny("llama", num_hidden_layers=3), *values)
        assert_same(pruned(method, allocation, reuse, range(3)), pruned(method, allocation, None, range(3)))
        taken.append(reuse.tally["blocks"] - before)
    assert taken == [0, 2, 1, 0, 3]


def test_a_scope_that_ends_earlier_is_a_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five forwards (two a block, none behind the last), two are left out: those that observe the blocks taken."""
    forwards: list[int] = []
    run_piece = Stream.run_piece

    def forward(stream: Stream, index: int, *given: Tensor) -> Tensor:
        forwards.append(index)
        return run_piece(stream, index, *given)

    monkeypatch.setattr(Stream, "run_piece", forward)
    reuse = ReuseCache(Store(CPU), Store(CPU, EVERYTHING), "these windows")
    for scope in (range(2), range(3)):
        model = tiny("llama", num_hidden_layers=3)
        allocation = levels(model, *[0.5] * len(scope))
        forwards.clear()
        method = reuse.method(METHODS["sparsegpt"], allocation)
        prune(decoder_of(model), batched(TOKENS), scope, method, allocation, None, reuse.walk)
    assert forwards == [0, 1, 2]
    alone = pruned("sparsegpt", levels(model, 0.5, 0.5, 0.5), None, range(3))[0]
    assert equal({name: weight.detach() for name, weight in model.named_parameters()}, alone)


def assert_same(one: tuple[dict[str, Tensor], Any], other: tuple[dict[str, Tensor], Any]) -> None:
    assert equal(one[0], other[0])
    assert one[1] == other[1]


def test_another_method_setting_or_text_is_no_equal_prefix() -> None:
    model, store = tiny("llama"), Store(CPU, EVERYTHING)
    for number, (name, cache_key, dense) in enumerate(
        [("wanda", "a", False), ("sparsegpt", "a", False), ("wanda", "b", False), ("wanda", "a", True)]
    ):
        reuse = ReuseCache(Store(CPU), store, cache_key, dense)
        pruned(name, levels(model, 0.5, 0.5), reuse, range(2))
        assert reuse.tally["blocks"] == 0, number


def test_a_store_keeps_to_its_limits_and_forgets_the_oldest_first() -> None:
    numbers = torch.zeros(25)  # 100 bytes
    store = Store(CPU, 250)
    for point, key in enumerate("abc"):
        store.point = point
        store.put(key, numbers)
    assert [key in store for key in "abc"] == [False, True, True]  # asked in point 2: both are in use now
    store.put("d", numbers)
    assert "d" not in store
    store.point = 3
    assert "c" in store
    store.put("d", numbers)
    assert [store.get(key) is not None for key in "bcd"] == [False, True, True]
    assert store.used() == 200
    store.put("e", torch.zeros(100))
    assert "e" not in store
    elsewhere = Store(CPU, 0, host=100)
    elsewhere.put("a", numbers)
    assert (elsewhere.used(), elsewhere.used(on_host=True)) == (0, 100)
    assert torch.equal(elsewhere.get("a"), numbers)


def test_a_gram_matrix_counts_and_moves_with_its_factors() -> None:
    seen = seen_by(gram, *torch.randn(3, 40, 8))
    alone = bytes_of(seen)
    seen.damped_inverse(0.01)
    assert (alone, bytes_of(seen)) == (256, 768)
    moved = shared._moved(seen, CPU)
    assert isinstance(moved, Gram) and same(moved, seen)
    assert moved.damped_inverse(0.01).factor is moved._inverses[0.01].factor
    assert bytes_of(SquaredNorms(torch.zeros(4), 1)) == 16


def test_only_statistics_that_a_module_holds_are_known_by_name() -> None:
    assert name_of(squared_norms) and name_of(gram) and name_of(squared_norms) != name_of(gram)
    assert name_of(together({"gram": gram})) == ""
    assert name_of(Statistic(squared_norms.init, lambda state, inputs: state)) == ""
