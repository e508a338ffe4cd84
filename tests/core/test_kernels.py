"""The Triton kernels against plain torch, to the bit where nothing is summed; on a GPU, or with TRITON_INTERPRET=1.

The interpreter needs the package triton beside torch's CPU build: `pip install triton`, then
`TRITON_INTERPRET=1 python -m pytest tests/core/test_kernels.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from threading import Lock
from typing import Any

import pytest
import torch
from helpers import inputs, linears, normal, pattern, tiny, windows

from harness.calibration.derivatives.curvature import fisher_trace, hessian_trace
from harness.compress import prune
from harness.core import columns
from harness.core.linalg import mirrored
from harness.core.pattern import NofM, Unstructured, keep
from harness.core.scaled import Departure
from harness.evaluation.perplexity import mean_nll
from harness.methods.wanda import Wanda
from harness.models.decoder import decoder_of
from harness.models.placement import Where, place, placement_of

HERE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(HERE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1", reason="no GPU"),
]

SCORES: dict[str, Callable[[int], torch.Tensor]] = {
    "either sign": lambda n: normal(3, n),
    "few values": lambda n: normal(3, n).mul(2).round(),
    "tiny": lambda n: normal(3, n).abs() * 1e-38,
    "zeros": lambda n: torch.zeros(3, n),
    "infinite": lambda n: normal(3, n).masked_fill(normal(3, n, seed=1) > 1, float("inf")),
}


@pytest.mark.parametrize("n", [5, 100, 4097])
@pytest.mark.parametrize("name", SCORES)
def test_thresholds_and_rows(name: str, n: int) -> None:
    from harness.core.select_gpu import keep_rows, smallest

    scores = SCORES[name](n).to(HERE)
    for rank in {1, 2, n // 2 + 1, n}:
        assert torch.equal(smallest(scores, rank), scores.sort(dim=1).values[:, rank - 1 : rank])
        if rank < n:
            lowest = scores.argsort(dim=1, stable=True)[:, :rank]
            wanted = torch.ones_like(scores, dtype=torch.bool).scatter_(1, lowest, False)
            assert torch.equal(keep_rows(scores, rank), wanted)


@pytest.mark.parametrize("asked", ["0.5", "0.9", "2of4", "1of4", "4of8"])
@pytest.mark.parametrize("obs", [True, False], ids=["obs", "other"])
@pytest.mark.parametrize(("outputs", "width"), [(37, 40), (100, 128), (5, 8)])
def test_one_kernel_walks_as_the_loop_does(outputs: int, width: int, obs: bool, asked: str) -> None:
    from harness.core.columns_gpu import walk

    seen = inputs(4 * width, width).to(HERE)
    factor = torch.linalg.cholesky(torch.linalg.inv(seen.T @ seen), upper=True)
    weight, wanted = normal(outputs, width).to(HERE), pattern(asked)
    divisor = factor.diagonal() ** 2 if obs else 1 / (seen.square().sum(dim=0) + 1 / factor.diagonal() ** 2)
    chosen = None
    if isinstance(wanted, Unstructured):
        chosen = keep(weight**2 / divisor, wanted, "matrix", quota="threshold")
    slow = columns._walk(weight, factor, divisor, chosen, wanted)
    ours = walk(weight, factor, divisor, chosen, wanted if isinstance(wanted, NofM) else None)
    for one, other in zip(ours, slow, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("tokens", "width"), [(100, 70), (64, 128), (130, 300)])
def test_half_of_a_gram_matrix(tokens: int, width: int) -> None:
    from harness.core.gram_gpu import add_lower

    seen = normal(tokens, width).half().to(HERE)
    before = normal(width, width).to(HERE)
    before = before + before.T
    sums = before.clone()
    add_lower(sums, seen, 0.3, 0.7)
    exact = 0.3 * before.double() + 0.7 * seen.double().T @ seen.double()
    torch.testing.assert_close(mirrored(sums).double(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("width", [70, 256])
def test_what_solvers_do_between_products(width: int) -> None:
    """Steps of a splitting and of conjugate gradients by kernels, beside the same in plain torch."""
    from harness.core import refit, solver_gpu
    from harness.core.products import Multiplier
    from harness.core.resolvent import _weights

    dense, seen = normal(9, width).to(HERE), inputs(3 * width, width).to(HERE)
    scale = seen.square().sum(dim=0).sqrt()
    matrix = seen.T @ seen / scale / scale[:, None]
    exact = dense.double() @ matrix.double()
    parts, scales = solver_gpu.halves(dense, 3)
    high, low, again = (parts.double() * scales).split(width, dim=1)
    assert torch.equal(high, again)
    torch.testing.assert_close(high + low, dense.double(), rtol=1e-6, atol=1e-6 * float(dense.abs().max()))
    torch.testing.assert_close(Multiplier(matrix, "split")(dense).double(), exact, rtol=1e-5, atol=1e-5)

    kept = dense.abs() > 0.6
    plain, ours = (Departure(Multiplier(matrix), dense, kept, 0.0) for _ in range(2))
    for rho in (0.1, 0.13, 0.5):
        inverse = torch.linalg.inv(matrix.double() + rho * torch.eye(width, device=HERE)).float()
        plain.step(Multiplier(inverse), rho)
        ours._on_gpu(Multiplier.of_halves((rho * inverse).half(), torch.tensor(1 / rho)), ours.dual / rho)
        ours.dual = rho
        torch.testing.assert_close(ours.solution, plain.solution, rtol=0, atol=4e-3)
        torch.testing.assert_close(ours.free, plain.free, rtol=0, atol=4e-3)
        plain.kept = ours.kept = plain.free.abs() > 0.6

    nodes = torch.rand(2, 3, width, width, generator=torch.Generator().manual_seed(0)).half().to(HERE)
    weights = _weights(0.3, [0.25, 1.0])
    wanted = (nodes.flatten(0, 1).double() * torch.tensor(weights, device=HERE).double()[:, None, None]).sum(dim=0)
    given = solver_gpu.blend(nodes[0], nodes[1], weights, torch.float32)
    torch.testing.assert_close(given.double(), wanted, rtol=1e-5, atol=1e-5)

    times, start = Multiplier(matrix, "split"), dense * kept
    by_torch, by_kernel = start.clone(), start.clone()
    for descent, x in ((refit._descent, by_torch), (refit._halves_descent, by_kernel)):
        descent(times.rough, x, (exact.float() - times(x)) * kept, kept, 5)
    torch.testing.assert_close(by_kernel, by_torch, rtol=0, atol=2e-3)
    assert not torch.allclose(by_kernel, start, atol=0.05) and bool((by_kernel[~kept] == 0).all())


@pytest.mark.parametrize(("swaps", "size"), [(1, 8), (5, 20), (40, 64)])
def test_exchanges_in_one_kernel_are_those_of_the_loop(swaps: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.core import swaps_gpu
    from harness.core.products import Multiplier
    from harness.core.swaps import _Rows

    weight, seen = normal(30, 96).to(HERE), (normal(300, 6, seed=1) @ normal(6, 96, seed=2)).to(HERE)
    matrix = seen.T @ seen + torch.eye(96, device=HERE)
    kept = keep(weight.abs(), Unstructured(0.5))
    kept[0], kept[1, 1:], kept[1, 0] = True, False, True
    ours, theirs = kept.clone(), kept.clone()
    choice = _Rows(weight, theirs, matrix, Multiplier(matrix), size)
    moved = swaps_gpu.exchange(choice.sides, matrix, ours, swaps)
    monkeypatch.setattr(swaps_gpu, "WIDEST", 0)
    assert torch.equal(choice.exchange(swaps), moved)
    assert torch.equal(ours, theirs) and not torch.equal(ours, kept)


@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral", "gemma2", "opt", "phi"])
def test_fused_steps_are_the_models_own(name: str) -> None:
    """Every model gives its own logits, up to a rounding, and is left as it was."""
    from harness.models.fused import _replacements, fused

    model = tiny(name).to(HERE).half()
    decoder = decoder_of(model)
    tokens = torch.randint(0, 50, (2, 16), generator=torch.Generator().manual_seed(0)).to(HERE)
    before = model(tokens, use_cache=False).logits
    replaced = list(_replacements(decoder))
    with fused(decoder) as names:
        inside = model(tokens, use_cache=False).logits
    assert names == [item[0] for item in replaced]
    assert len(replaced) >= {"opt": 0, "gemma2": 1, "phi": 1}.get(name, 8)
    torch.testing.assert_close(inside, before, rtol=5e-3, atol=5e-3 * float(before.abs().max()))
    assert torch.equal(model(tokens, use_cache=False).logits, before)


def test_fused_steps_leave_gradients_to_the_models_own_code() -> None:
    from harness.models.fused import fused

    model = tiny("llama").to(HERE).half()
    decoder = decoder_of(model)

    def traces() -> list[Any]:
        asked = (decoder, windows(2, 16).to(HERE), range(2))
        return [fisher_trace(*asked), hessian_trace(*asked, 1, "rademacher", 0)]

    before = traces()
    with fused(decoder) as names:
        assert len(names) >= 8
        for inside, outside in zip(traces(), before, strict=True):
            assert inside.keys() == outside.keys()
            for site, trace in inside.items():  # hidden states without gradients come from the kernels
                assert trace[0] == pytest.approx(outside[site][0], rel=0.05, abs=0.05 * abs(outside[site][0]))


@pytest.fixture
def _one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter, unlike a GPU, runs one kernel at a time; replicas run in threads."""
    from harness.models import fused_gpu

    lock = Lock()

    def locked(kernel: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any) -> Any:
            with lock:
                return kernel(*given)

        return run

    for name in ("rms_norm", "silu_times", "rotate") if HERE == "cpu" else ():
        monkeypatch.setattr(fused_gpu, name, locked(getattr(fused_gpu, name)))


@pytest.mark.usefixtures("_one_at_a_time")
@pytest.mark.parametrize("others", [0, 2])
@pytest.mark.parametrize("offload", [False, True])
def test_fused_steps_go_where_the_model_goes(offload: bool, others: int) -> None:
    """Blocks that wait in host memory and replicas have the kernels, each on its own weights."""
    from harness.models.fused import fused

    here = torch.device(HERE, 0) if HERE == "cuda" else torch.device(HERE)

    def made(where: Where) -> tuple[Any, float]:
        model = tiny("llama", torch.float16, num_hidden_layers=3)
        decoder = decoder_of(model)
        place(decoder, where)
        allocation = dict.fromkeys(linears(model, decoder.modules), pattern("0.6"))
        with fused(decoder) as names:
            assert len(names) == 3 * 3 + 2  # a norm, a norm and a gate a block; a norm, a rotation
            prune(decoder, [windows(2, seed=seed).to(here) for seed in range(3)], range(3), Wanda(), allocation)
            loss = mean_nll(decoder_of(model), windows(5, seed=7), here)
        assert "forward" not in vars(model.model.norm)
        return model, loss

    (resident, loss), (model, same) = made(Where(here)), made(Where(here, offload=offload, others=[here] * others))
    ours, theirs = (torch.cat([p.cpu().flatten() for p in one.state_dict().values()]) for one in (resident, model))
    if others:  # sums over windows in another order decide near ties
        assert float(((ours == 0) != (theirs == 0)).float().mean()) < 0.01 and same == pytest.approx(loss, rel=0.01)
    else:
        assert torch.equal(ours, theirs) and same == loss
    decoder = decoder_of(model)
    replicas: list[Any] = placement_of(decoder).replicas(decoder, others)
    assert len(replicas) == others
    for replica in replicas:
        block = replica.modules[1]
        for module in (replica.model.model.norm, block.input_layernorm, block.mlp):
            assert vars(module)["forward"].__self__ is module
