"""The released variant against a slow version from the notes on the authors' code: SVD, autograd, no Gram matrices.

Shapes: T tokens, D hidden size, F feed-forward size; tokens are columns here, as in their code.
"""

from __future__ import annotations

import pytest
import torch
from helpers import pattern, tiny, windows
from torch import Tensor

from harness.compress import prune
from harness.core.statistic import Gram
from harness.methods.sparsegpt import SparseGPT
from harness.methods.sparsellm import SparseLLM
from harness.methods.sparsellm.released import released_epochs
from harness.models.decoder import decoder_of

WINDOWS, LENGTH, ASKED = 12, 24, "0.5"


def slow(part: dict[str, tuple[Tensor, Tensor | None]], x: Tensor, penalty: float, epochs: int) -> dict[str, Tensor]:
    """The feed-forward matrices after the authors' epochs; `part` holds weight and bias of up, gate (or none), down."""
    up, down = part["up"][0], part["down"][0]
    gate = part["gate"][0] if "gate" in part else None
    b_up = torch.zeros(len(up), 1) if part["up"][1] is None else part["up"][1][:, None]
    z, s = up @ x + b_up, None if gate is None else gate @ x
    p = z.relu() if s is None else torch.nn.functional.silu(s) * z
    y = down @ p
    hessian = {name: 2 * x @ x.T / WINDOWS for name in part if name != "down"}
    new = {name: weight.clone() for name, (weight, _) in part.items()}
    inverse = torch.linalg.pinv(x.double()).float()
    for epoch in range(epochs):
        if epoch:
            new["up"] = (z - b_up) @ inverse
            if s is None:
                new["down"] = descended(new["down"], p, y)
            else:
                new["gate"], new["down"] = s @ inverse, (y.double() @ torch.linalg.pinv(p.double())).float()
        hessian["down"] = 2 * p @ p.T / WINDOWS
        for name in new:
            new[name] = SparseGPT().prune(new[name], Gram(hessian[name].clone(), WINDOWS), pattern(ASKED)).weight
            hessian[name].diagonal().add_(0.01 * hessian[name].diagonal().mean())  # in place: it stays
        system = penalty * new["down"].T @ new["down"] + penalty * torch.eye(len(p))
        a = z.relu() if s is None else torch.nn.functional.silu(s) * z
        p = torch.inverse(system) @ (penalty * new["down"].T @ y + penalty * a)
        m = new["up"] @ x + b_up
        if s is None:
            z = before_relu(m, p)
            continue
        opened = torch.nn.functional.silu(s)
        z = (m + opened * p) / (opened**2 + 1)
        for _ in range(2):
            s = s.detach().requires_grad_()
            lost = (s - new["gate"] @ x).square().sum() + (p - torch.nn.functional.silu(s) * z).square().sum()
            (slope,) = torch.autograd.grad(penalty * lost, s)
            s = (s - 0.01 * slope).detach()
    return new


def descended(weight: Tensor, p: Tensor, y: Tensor) -> Tensor:
    for _ in range(10):
        weight = weight.detach().requires_grad_()
        (slope,) = torch.autograd.grad((weight @ p - y).square().mean(), weight)
        weight = (weight - 0.01 * slope).detach()
    return weight


def before_relu(m: Tensor, p: Tensor) -> Tensor:
    """The better of the two branches, α = γ."""
    options = torch.stack([((p + m) / 2).clamp(min=0), m.clamp(max=0)])
    cost = (p - options.relu()) ** 2 + (options - m) ** 2
    return options.gather(0, cost.argmin(dim=0, keepdim=True))[0]


@pytest.mark.parametrize(("name", "penalty"), [("llama", 5.0), ("opt", 0.1)])
@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_it_is_the_authors_loop(name: str, penalty: float, epochs: int) -> None:
    model = tiny(name)
    decoder = decoder_of(model)
    part = decoder.feed_forward(0)
    caught: list[Tensor] = []
    hook = model.get_submodule(part.readers[0]).register_forward_hook(lambda _, given, output: caught.append(given[0]))
    model(windows(WINDOWS, LENGTH))
    hook.remove()
    roles = dict(zip(("gate", "up", "down") if part.gated else ("up", "down"), part.sites, strict=True))
    weights = {role: (model.get_submodule(site).weight.clone(), part.biases.get(site)) for role, site in roles.items()}
    expected = slow(weights, caught[0].reshape(-1, 32).T, penalty, epochs)
    method = SparseLLM(variant="released", epochs=epochs)
    sites = list(decoder.linears(0))
    prune(decoder, [windows(WINDOWS, LENGTH)], range(1), method, dict.fromkeys(sites, pattern(ASKED)))
    for role, site in roles.items():
        ours = model.get_submodule(site).weight
        assert ((ours != 0) != (expected[role] != 0)).float().mean() <= (0.002 if epochs > 1 else 0), role
        assert (ours - expected[role]).norm() <= 0.02 * expected[role].norm(), role


def test_blocks_that_stop_early() -> None:
    gated, plain = (decoder_of(tiny(name)).feed_forward(0) for name in ("llama", "opt"))
    assert [released_epochs(4, gated, index) for index in (0, 1, 2, 29, 30, 31, 32)] == [4, 1, 4, 4, 1, 1, 4]
    assert released_epochs(4, plain, 1) == 4
