"""Traces of curvature against gradients and Hessians of the whole model, and what computing them leaves behind."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from helpers import TINY, linears, tiny, windows
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from harness.calibration.derivatives import curvature
from harness.calibration.derivatives.curvature import fisher_trace, hessian_trace
from harness.models.decoder import decoder_of

SMALL: dict[str, Any] = {"hidden_size": 4, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 4}
SMALL |= {"intermediate_size": 6}
"""A Llama whose Hessians can be written out, matrix by matrix."""
TRACES: dict[str, Any] = {
    "fisher": fisher_trace,
    "hessian": partial(hessian_trace, probes=1, draws="gaussian", seed=0),
}


@contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """The whole model with gradients, twice if need be."""
    with sdpa_kernel(SDPBackend.MATH):
        yield model.requires_grad_(True)
    model.zero_grad()
    model.requires_grad_(False)


def loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """The mean negative log-likelihood of one window (1, L), as the model itself counts it."""
    return model(tokens, labels=tokens, use_cache=False).loss


def ranked(model: nn.Module) -> dict[str, Tensor]:
    """The matrices and norm weights of all blocks by name, found without any layout."""
    blocks = decoder_of(model).anatomy.blocks
    named = {name.removesuffix(".weight"): p for name, p in model.named_parameters() if name.endswith(".weight")}
    return {site: p for site, p in named.items() if site.startswith(blocks)}


def fisher(model: nn.Module, tokens: Tensor) -> dict[str, Tensor]:
    """Squared gradients of every linear (N,), each window's loss through the whole model."""
    sites = linears(model, decoder_of(model).modules)
    rows: dict[str, list[Tensor]] = {site: [] for site in sites}
    with differentiable(model):
        for window in tokens.split(1):
            model.zero_grad()
            loss(model, window).backward()
            for site, linear in sites.items():
                rows[site].append(linear.weight.grad.square().sum())
    return {site: torch.stack(squares) for site, squares in rows.items()}


@pytest.mark.parametrize("name", TINY)
def test_fisher_is_that_of_gradients_through_the_whole_model(name: str) -> None:
    model, tokens = tiny(name), windows(3)
    traces = fisher_trace(decoder_of(model), tokens, range(2))
    for site, squares in fisher(model, tokens).items():
        assert traces[site].value == pytest.approx(float(squares.mean()), rel=1e-4), site
        assert traces[site].stderr == pytest.approx(float(squares.std()) / 3**0.5, rel=1e-3), site
    assert list(traces) == [site for index in range(2) for site in decoder_of(model).linears(index)]


@pytest.mark.parametrize("draws", ["gaussian", "rademacher"])
@pytest.mark.parametrize("name", TINY)
def test_a_hessian_vector_product_is_that_of_the_whole_model(name: str, draws: Any) -> None:
    model, tokens = tiny(name), windows(1)
    directions = partial(curvature._directions, draws, 0, "0/0")
    traces = hessian_trace(decoder_of(model), tokens, range(2), 1, draws, 0)
    weights = ranked(model)
    assert set(traces) == set(weights)
    with differentiable(model):
        gradients = torch.autograd.grad(loss(model, tokens), list(weights.values()), create_graph=True)
        products = torch.autograd.grad(gradients, list(weights.values()), directions(weights))
    for site, z, product in zip(weights, directions(weights), products, strict=True):
        rounding = 1e-6 * float(z.norm() * product.norm())
        assert traces[site].value == pytest.approx(float((z * product).sum()), rel=1e-4, abs=rounding), site
        assert math.isnan(traces[site].stderr)


def explicit_trace(model: nn.Module, tokens: Tensor, weight: Tensor) -> float:
    """The trace of the Hessian with respect to one weight, all of its rows written out."""
    (gradient,) = torch.autograd.grad(loss(model, tokens), weight, create_graph=True)
    one_hot = torch.eye(weight.numel()).view(-1, *weight.shape)
    (rows,) = torch.autograd.grad(gradient, weight, one_hot, is_grads_batched=True)
    return float(rows.flatten(1).trace())


def test_hutchinson_finds_the_trace_of_the_written_out_hessian() -> None:
    model, tokens = tiny("llama", **SMALL), windows(1, 8)
    traces = hessian_trace(decoder_of(model), tokens, range(2), 100, "gaussian", 0)
    with differentiable(model):
        for site, weight in ranked(model).items():
            expected = explicit_trace(model, tokens, weight)
            assert abs(traces[site].value - expected) < 3 * traces[site].stderr, (site, traces[site], expected)


def test_draws_are_what_they_are_called() -> None:
    weights = {site: torch.empty(300, 400) for site in "ab"}
    for draws, fourth in (("gaussian", 3.0), ("rademacher", 1.0)):
        a, b = curvature._directions(draws, 0, "0/0", weights)
        for power, moment in ((1, 0), (2, 1), (3, 0), (4, fourth)):
            assert float(a.pow(power).mean()) == pytest.approx(moment, abs=0.1)
        assert float((a * b).mean()) == pytest.approx(0, abs=0.02)
        assert torch.equal(b, curvature._directions(draws, 0, "0/0", {"b": weights["b"]})[0])


def test_errors_are_over_windows_or_probes() -> None:
    model, tokens = tiny("llama"), windows(2)
    ask = partial(hessian_trace, decoder_of(model), scope=range(2), draws="gaussian", seed=3)
    alone, two_windows, two_probes = ask(tokens[:1], probes=1), ask(tokens, probes=1), ask(tokens[:1], probes=2)
    for site, trace in alone.items():
        for pair in (two_windows[site], two_probes[site]):
            other = 2 * pair.value - trace.value  # the same z of window 0 and probe 0 in all three
            assert pair.stderr == pytest.approx(abs(trace.value - other) / 2, rel=1e-3)
            assert other != pytest.approx(trace.value)
    assert all(math.isnan(t.stderr) for t in fisher_trace(decoder_of(model), tokens[:1], range(2)).values())
    assert alone == ask(tokens[:1], probes=1) != ask(tokens[:1], probes=1, seed=4)


def test_fisher_does_not_depend_on_the_split() -> None:
    model, cpu = tiny("qwen2"), torch.device("cpu")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    ask = partial(fisher_trace, decoder_of(model), scope=range(2))
    for count in (1, 5):
        assert ask(windows(count), devices=[cpu, cpu])["model.layers.0.mlp.up_proj"].value > 0
    assert ask(windows(5)) == ask(windows(5), devices=[cpu]) == ask(windows(5), devices=[cpu, cpu])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_scope_asks_for_fewer_matrices() -> None:
    """Fisher's are the same numbers; of the Hessian only the z in scope move, with blocks before and behind."""
    model, tokens = tiny("llama", num_hidden_layers=3), windows(2)
    decoder = decoder_of(model)
    whole = fisher_trace(decoder, tokens, range(3))
    part = fisher_trace(decoder, tokens, range(1, 2))
    assert list(part) == list(decoder.linears(1))
    assert all(part[site] == whole[site] for site in part)
    forms = hessian_trace(decoder, tokens[:1], range(1, 2), 1, "gaussian", 0)
    weights = {site: p for site, p in ranked(model).items() if ".1." in site}
    assert list(forms)[:7] == list(part) and set(forms) == set(weights)
    z = curvature._directions("gaussian", 0, "0/0", weights)
    with differentiable(model):
        gradients = torch.autograd.grad(loss(model, tokens[:1]), list(weights.values()), create_graph=True)
        products = torch.autograd.grad(gradients, list(weights.values()), z)
    for site, one, product in zip(weights, z, products, strict=True):
        assert forms[site].value == pytest.approx(float((one * product).sum()), rel=1e-3, abs=1e-5), site


@pytest.mark.parametrize("kind", ["fisher", "hessian"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", TINY)
def test_traces_of_16_bit_weights_are_those_of_a_float32_run(name: str, dtype: torch.dtype, kind: str) -> None:
    """Of the same weights, to the last bit on a CPU, where both run the same code."""
    model = tiny(name, dtype)
    decoder = decoder_of(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    ask = TRACES[kind]
    traces = ask(decoder, windows(2), range(1, 2))
    assert all(torch.equal(value, before[key]) and value.dtype == dtype for key, value in model.state_dict().items())
    assert traces == ask(decoder_of(model.float()), windows(2), range(1, 2))


def test_traces_of_a_deep_float16_model_are_finite() -> None:
    """A z of order one in every matrix makes tangents grow from block to block, beyond float16 before the thirtieth."""
    model = tiny("llama", torch.float16, num_hidden_layers=30)
    for ask in TRACES.values():
        traces = ask(decoder_of(model), windows(1), range(30))
        assert all(math.isfinite(trace.value) for trace in traces.values())
        assert max(abs(trace.value) for trace in traces.values()) > 0


def test_a_run_that_fails_leaves_16_bit_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError

    model = tiny("llama", torch.float16)
    monkeypatch.setattr(curvature, "grad", broken)
    for ask in TRACES.values():
        with pytest.raises(RuntimeError):
            ask(decoder_of(model), windows(1), range(2))
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("kind", ["fisher", "hessian"])
def test_the_model_is_left_as_it_was(kind: str, marked: bool) -> None:
    """Weights, flags and gradients; and it works whatever the flags and the caller's own mode."""
    model, tokens = tiny("llama").requires_grad_(marked), windows(2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        if kind == "fisher":
            fisher_trace(decoder_of(model), tokens, range(2))
        else:
            hessian_trace(decoder_of(model), tokens, range(2), 1, "gaussian", 0)
    assert all(p.requires_grad == marked and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.isfinite(loss(model, tokens[:1]))


@pytest.mark.parametrize("kind", ["fisher", "hessian"])
def test_no_two_blocks_have_gradients_at_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = tiny("llama", num_hidden_layers=3), windows(2)
    shapes = {p.shape for p in ranked(model).values() if p.dim() == 2}
    seen: list[weakref.ref[Tensor]] = []
    asked: list[int] = []

    def watched(outputs: Any, wanted: Any, *rest: Any, **named: Any) -> tuple[Tensor, ...]:
        if isinstance(outputs, Tensor):  # the first derivative of a block or the head, not the second one
            assert not any(one() is not None for one in seen), "the gradients of another block are still there"
        asked.append(sum(one.shape in shapes for one in wanted) if isinstance(wanted, list) else 0)
        found = torch.autograd.grad(outputs, wanted, *rest, **named)
        seen.extend(weakref.ref(one) for one in found if one.shape in shapes)
        return found

    monkeypatch.setattr(curvature, "grad", watched)
    if kind == "fisher":
        fisher_trace(decoder_of(model), tokens, range(3))
    else:
        hessian_trace(decoder_of(model), tokens, range(3), 1, "gaussian", 0)
    assert max(asked) - min(asked) == 7 and not any(one() is not None for one in seen)
