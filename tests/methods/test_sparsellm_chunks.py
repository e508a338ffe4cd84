"""SparseLLM over many windows at once, as a GPU does it in 16 bits, beside the same window by window.

The Triton kernels run here on a GPU or, beside torch's CPU build, with TRITON_INTERPRET=1 and the package triton.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import linears, normal, pattern, seen_by, tiny, windows
from torch import Tensor, nn

from harness.compress import prune
from harness.core.interfaces import FeedForward
from harness.core.statistic import Gram, gram
from harness.methods.sparsegpt import SparseGPT
from harness.methods.sparsellm import SparseLLM, chunks
from harness.methods.sparsellm.alternating import _Tokens
from harness.methods.sparsellm.chunks import Chunks, windows_at_once
from harness.methods.sparsellm.moves import KINDS, Moves, kind_of
from harness.methods.sparsellm.problem import Problem, Trace
from harness.methods.sparsellm.updates import Penalties
from harness.methods.wanda import Wanda
from harness.models.decoder import decoder_of
from harness.runtime.memory import OffloadableTensors

SHAPES = ["llama", "opt", "phi", "phi3", "gpt_neox"]
FAST = gram._replace(update=lambda state, x: replace(gram.update(state, x), fast=True))
HERE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums count as taken in another order, as they are in 16 bits on a GPU."""
    for name in ("method", "sums"):
        monkeypatch.setattr(f"harness.methods.sparsellm.{name}.gram", FAST)
    monkeypatch.setattr(SparseGPT, "statistic", FAST)


def problem_of(name: str, dtype: torch.dtype, count: int, length: int = 16) -> Problem:
    """The feed-forward part of a tiny model's second block over random inputs."""
    decoder = decoder_of(tiny(name, dtype))
    part = decoder.feed_forward(1)
    dense = {site: linear.weight.data for site, linear in decoder.linears(1).items() if site in part.sites}
    width = dense[part.down].shape[0]
    x = [normal(length, width, seed=seed).to(dtype) for seed in range(count)]
    patterns = dict.fromkeys(part.sites, pattern("0.5"))
    seen = seen_by(gram, *x)
    kept = OffloadableTensors(torch.device("cpu"), x)
    return Problem(part, dense, patterns, SparseGPT(), Penalties(1.0, 1.5, 0.7), kept, seen, seen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("count", "at_once"), [(7, 4), (4, 1), (6, 100)])
@pytest.mark.parametrize("name", SHAPES)
def test_chunks_give_what_single_windows_give(
    name: str, count: int, at_once: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses, sums, Gram matrix and variables of two passes; in 16 bits to the rounding of what products read.

    s is a minimum found by steps of which rounding takes the last or not, so it is known to the root of a rounding.
    """
    problem = problem_of(name, dtype, count)
    pruned, fewer = (
        {site: weight * (weight.abs() > share * weight.abs().mean()) for site, weight in problem.dense.items()}
        for share in (1.0, 1.5)
    )
    monkeypatch.setattr(chunks, "ELEMENTS", at_once * 16 * problem.dense[problem.part.down].shape[1])
    slow, fast, traces = _Tokens(problem), Chunks(problem), (Trace(), Trace())
    rough, known = (1e-5, 1e-3) if dtype == torch.float32 else (5e-3, 1e-2)
    for weights in (pruned, fewer):
        one = slow.sweep(weights, traces[0], last=False)
        other = fast.sweep(weights, traces[1], last=False)
        assert one is not None and other is not None
        assert one.stats["gram"].windows == other.stats["gram"].windows == count
        pairs = [(one.cross[site], other.cross[site]) for site in problem.part.sites]
        for ours, theirs in [*pairs, (one.stats["gram"].matrix, other.stats["gram"].matrix)]:
            torch.testing.assert_close(theirs, ours, rtol=known, atol=known * float(ours.abs().max()))
    assert slow.sweep(pruned, traces[0], last=True) is None and fast.sweep(pruned, traces[1], last=True) is None
    assert traces[1].loss == pytest.approx(traces[0].loss, rel=rough)
    assert traces[1].coupling == pytest.approx(traces[0].coupling, rel=rough)
    assert len(traces[1].loss) == 3 and len(traces[1].coupling) == 2
    variables = torch.cat([torch.cat(list(each)) for each in (slow.s, slow.z) if len(each)], dim=1)
    torch.testing.assert_close(torch.cat(list(fast.state)), variables, rtol=known, atol=known)


@pytest.mark.usefixtures("_fast")
@pytest.mark.parametrize("inner", [SparseGPT(), Wanda()], ids=["sparsegpt", "wanda"])
@pytest.mark.parametrize("name", SHAPES)
def test_the_fast_way_is_as_good(name: str, inner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the model to its weights, with factors that nobody looked at: errors of every epoch, and zeros."""

    def told(method: SparseLLM) -> tuple[dict[str, Any], float]:
        model, facts = tiny(name), dict[str, Any]()
        sites = list(linears(model, decoder_of(model).modules))
        prune(decoder_of(model), [windows(12, 24)], range(2), method, dict.fromkeys(sites, pattern("0.5")), facts)
        return facts, float((model.get_submodule(sites[-1]).weight == 0).float().mean())

    made: list[bool] = []
    sweep = Chunks.sweep

    def counted(self: Chunks, weights: Any, trace: Trace, *, last: bool) -> Any:
        made.append(last)
        return sweep(self, weights, trace, last=last)

    monkeypatch.setattr(Chunks, "sweep", counted)
    ours, zeros = told(SparseLLM(inner=inner, fallback=False))
    assert len(made) == 8
    monkeypatch.setattr("harness.methods.sparsellm.method.gram", gram)
    theirs, same = told(SparseLLM(inner=inner, fallback=False))
    assert len(made) == 8 and zeros == pytest.approx(same, abs=0.02)
    for block, facts in theirs.items():
        assert ours[block]["loss"] == pytest.approx(facts["loss"], rel=0.02)


@pytest.mark.usefixtures("_fast")
def test_a_factor_that_is_none_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the short way to a factor fails, the long one with a raised damping is gone; the weights are its."""

    def pruned() -> Tensor:
        model = tiny("llama")
        sites = list(linears(model, decoder_of(model).modules))
        prune(decoder_of(model), [windows(8)], range(2), SparseLLM(), dict.fromkeys(sites, pattern("0.5")))
        return torch.cat([model.get_submodule(site).weight.flatten() for site in sites])

    whole = Gram.unchecked_factor
    monkeypatch.setattr(
        Gram, "unchecked_factor", lambda self, damping: whole(self, damping)._replace(ok=torch.tensor(False))
    )
    failed = pruned()
    assert torch.isfinite(failed).all()
    monkeypatch.setattr(Gram, "unchecked_factor", whole)
    torch.testing.assert_close(failed, pruned(), rtol=0.05, atol=0.02)


def test_windows_of_a_chunk() -> None:
    assert windows_at_once(2048, 1536) == 20 and windows_at_once(2048, 11008) == 2
    assert windows_at_once(2048, 28672) == windows_at_once(4096, 28672) == 1 and windows_at_once(512, 704) == 184


def test_activations_are_known_by_what_they_do() -> None:
    modules = {"silu": nn.SiLU(), "gelu": nn.GELU(), "gelu_tanh": nn.GELU(approximate="tanh"), "relu": nn.ReLU()}
    assert {kind: kind_of(module) for kind, module in modules.items()} == {kind: kind for kind in KINDS}
    assert kind_of(nn.Tanh()) is None and kind_of(lambda x: nn.functional.gelu(1.702 * x)) is None


def kernels() -> Iterator[Any]:
    for kind in KINDS:
        for gated in (True, False):
            yield pytest.param(kind, gated, id=f"{kind}{' gated' if gated else ''}")


@pytest.mark.gpu
@pytest.mark.skipif(HERE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1", reason="no GPU")
@pytest.mark.parametrize("short", [torch.float16, torch.float32])
@pytest.mark.parametrize("penalties", [Penalties(1.0, 1.0, 1.0), Penalties(2.0, 0.5, 0.3)], ids=["equal", "other"])
@pytest.mark.parametrize(("kind", "gated"), kernels())
def test_kernels_are_the_plain_updates(kind: str, gated: bool, penalties: Penalties, short: torch.dtype) -> None:
    pytest.importorskip("triton")
    part = FeedForward(("up",), "down", gated, nn.ReLU() if kind == "relu" else KINDS[kind], {})
    plain, ours = (Moves(part, penalties, short, named) for named in (None, kind))
    columns = 2 * 700 if gated else 700
    wide, state, lift = (2 * normal(9, width, seed=seed).to(HERE) for seed, width in enumerate((columns, columns, 700)))
    rough, flat = 1e-5 if short == torch.float32 else 2e-3, 2e-3  # at a minimum cost is even to the root of a rounding
    for given in (None, state):
        torch.testing.assert_close(ours.hidden(wide, given), plain.hidden(wide, given), rtol=rough, atol=rough)
    moved = state.clone()
    for one, other in zip(ours.move(wide, moved, lift), plain.move(wide, state, lift), strict=True):
        assert one.dtype == other.dtype == short
        assert _share_apart(one, other, max(rough, flat)) < 1e-3
    assert _share_apart(moved, state, flat) < 1e-3


def _share_apart(one: Tensor, other: Tensor, rough: float) -> float:
    """The share of elements that differ by more: where two steps cost the same, rounding chooses between them."""
    return float(((one.float() - other.float()).abs() > rough * (1 + other.float().abs())).float().mean())
