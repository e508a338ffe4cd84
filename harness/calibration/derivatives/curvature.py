"""Traces of the loss's curvature, matrix by matrix: of the empirical Fisher matrix (MSP) and of the Hessian (ISC).

The loss of a window is its mean negative log-likelihood over L − 1 targets, as perplexity has it. Blocks are run again
one at a time, so that never more than the graph and the gradients of one exist.

Whatever the dtype of the model, all of this is computed in float32 (`float32.py`).

Shapes: N windows, L tokens, D hidden size, S sites, K probes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn.attention import SDPBackend, sdpa_kernel

from harness.calibration.derivatives.float32 import (
    Float32Stream,
    Weights,
    differentiable,
    in_float32,
    matrices,
    norms,
    window_loss,
)
from harness.core.interfaces import Draws, Site, Trace
from harness.core.linalg import products_like
from harness.core.rng import rng
from harness.models.decoder import Decoder
from harness.runtime.progress import progress

Directions = Callable[[Weights], list[Tensor]]
"""Weights → the z of each, the same whenever it is asked."""
REVISION = 2
"""Raised when traces change on purpose: what is cached is of one revision. 1: 16-bit models in their own dtype."""


def fisher_trace(
    decoder: Decoder, windows: Tensor, scope: Sequence[int], devices: Sequence[torch.device] = ()
) -> dict[Site, Trace]:
    """Xu et al. 2025 (arXiv 2503.11164): squared gradients of the loss of a window, summed over a matrix.

    The mean over windows (N, L) and its standard error. Further `devices` take their share of the windows, each with a
    copy of the model; the split changes nothing.
    """
    decoders = [decoder, *(_copied(decoder, device) for device in devices[: len(windows) - 1])]
    sites = [site for index in scope for site in decoder.linears(index)]
    threads = ThreadPoolExecutor(len(decoders))  # a thread records gradients even where the caller does not
    with products_like(next(decoder.model.parameters())), threads as pool:
        shares = pool.map(partial(_fisher_of, scope), decoders, windows.tensor_split(len(decoders)))
        return _traces(sites, torch.cat(list(shares)))


def hessian_trace(
    decoder: Decoder, windows: Tensor, scope: Sequence[int], probes: int, draws: Draws, seed: int
) -> dict[Site, Trace]:
    """Shao et al. 2023 (arXiv 2310.09499), eq. 5: Hutchinson's zᵀHz, H the Hessian with respect to one matrix.

    Each of N windows and K probes has a z of its own, drawn where the model is: a CPU and a GPU draw differently. Norm
    weights are included, behind the matrices of their block, since the released code ranks them too. The standard error
    is over probes, of a single probe over windows.
    """
    like = next(decoder.model.parameters())
    batches = windows.to(like.device).split(1)
    with (
        torch.enable_grad(),
        sdpa_kernel(SDPBackend.MATH),  # the fused kernels cannot be differentiated twice
        products_like(like),
        in_float32(decoder, batches) as state,
    ):
        blocks = {index: matrices(state, index) | norms(state, index) for index in scope}
        rows = []
        for probe, window in progress(list(product(range(probes), range(len(windows)))), "Hessian trace"):
            directions = partial(_directions, draws, seed, f"{window}/{probe}")
            rows.append(_quadratic_forms(state, blocks, state.hidden[window], batches[window], directions))
    estimates = torch.stack(rows).unflatten(0, (probes, -1))  # (K, N, S)
    sites = [site for weights in blocks.values() for site in weights]
    return _traces(sites, estimates.mean(dim=1) if probes > 1 else estimates[0])


def _traces(sites: Sequence[Site], estimates: Tensor) -> dict[Site, Trace]:
    """The mean of independent estimates (·, S) and its standard error."""
    means, count = estimates.mean(dim=0).tolist(), len(estimates)
    if count == 1:
        return {site: Trace(mean) for site, mean in zip(sites, means, strict=True)}
    errors = (estimates.std(dim=0) / count**0.5).tolist()
    return {site: Trace(mean, error) for site, mean, error in zip(sites, means, errors, strict=True)}


def _copied(decoder: Decoder, device: torch.device) -> Decoder:
    """The model on another device; what deepcopy alone would first put beside the original never exists."""
    model = decoder.model
    moved: dict[int, Tensor] = {id(buffer): buffer.to(device) for buffer in model.buffers()}
    for parameter in model.parameters():
        moved[id(parameter)] = nn.Parameter(parameter.detach().to(device), parameter.requires_grad)
    return replace(decoder, model=copy.deepcopy(model, moved))


def _fisher_of(scope: Sequence[int], decoder: Decoder, windows: Tensor) -> Tensor:
    """Squared gradients (N, S) of windows (N, L)."""
    batches = windows.to(next(decoder.model.parameters()).device).split(1)
    with in_float32(decoder, batches) as state:
        blocks = {index: matrices(state, index) for index in scope}
        pairs = progress(list(zip(state.hidden, batches, strict=True)), "Fisher trace")
        return torch.stack([_squared_gradients(state, blocks, hidden, tokens) for hidden, tokens in pairs])


def _squared_gradients(state: Float32Stream, blocks: Mapping[int, Weights], hidden: Tensor, tokens: Tensor) -> Tensor:
    """The squared gradient of each site (S,), for one window (1, L) with embeddings `hidden` (1, L, D)."""
    entering = [hidden]
    with torch.no_grad():
        for index in state.decoder.indices:
            entering.append(state.run_block(index, entering[-1], tokens))
    last = entering.pop().requires_grad_()
    (gradient,) = grad(window_loss(state, last, tokens), last)
    squares: list[Tensor] = []
    for index in reversed(state.decoder.indices[state.decoder.position(min(blocks)) :]):
        gradient, own = _block_squares(state, index, blocks.get(index, {}), entering.pop(), gradient, tokens)
        squares = own + squares
    return torch.stack(squares).double().cpu()


def _block_squares(
    state: Float32Stream, index: int, weights: Weights, hidden: Tensor, gradient: Tensor, tokens: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """From the gradient behind a block (1, L, D): the one in front of it, and the squared one of each weight.

    A function, so that the weights' gradients are gone before those of the next block exist.
    """
    hidden = hidden.detach().requires_grad_()
    with state.at(index), differentiable(weights) as leaves:
        entering, *own = grad(state.run_block(index, hidden, tokens), [hidden, *leaves], gradient)
    return entering, [torch.linalg.vector_norm(one).square() for one in own]


def _quadratic_forms(
    state: Float32Stream, blocks: Mapping[int, Weights], hidden: Tensor, tokens: Tensor, directions: Directions
) -> Tensor:
    """zᵀHz of each site (S,), for one window (1, L) with embeddings `hidden` (1, L, D).

    A Hessian-vector product is the derivative of the gradient along z. Forward, every hidden state is kept with its
    tangent; backward, the gradient λ of the loss with respect to it is followed by the tangent of λ. The z of all
    matrices move together, and give zᵀ(Hz) of each; what other matrices add to it has mean zero, as their z are
    independent of its own.
    """
    first = state.decoder.position(min(blocks))
    before, later = state.decoder.indices[:first], state.decoder.indices[first:]
    with torch.no_grad():
        for index in before:
            hidden = state.run_block(index, hidden, tokens)
    entering = [(hidden, torch.zeros_like(hidden))]
    for index in later:
        entering.append(_forward(state, index, blocks.get(index, {}), *entering[-1], directions, tokens))
    last, tangent = entering.pop()
    last = last.requires_grad_()
    (gradient,) = grad(window_loss(state, last, tokens), last, create_graph=True)
    (moving,) = grad(gradient, last, tangent)
    gradient = gradient.detach()
    forms: list[Tensor] = []
    for index in reversed(later):
        weights = blocks.get(index, {})
        gradient, moving, own = _backward(state, index, weights, *entering.pop(), gradient, moving, directions, tokens)
        forms = own + forms
    return torch.stack(forms).cpu()


def _directions(draws: Draws, seed: int, number: str, weights: Weights) -> list[Tensor]:
    """The z of each weight, which depends on its site and the number of the draw only."""
    drawn = []
    for site, weight in weights.items():
        generator = torch.Generator(weight.device)
        generator.manual_seed(rng(seed, f"hessian/{number}/{site}").getrandbits(63))
        z = torch.empty_like(weight, requires_grad=False)
        if draws == "gaussian":
            drawn.append(z.normal_(generator=generator))
        else:
            drawn.append(z.bernoulli_(generator=generator).mul_(2).sub_(1))
    return drawn


def _forward(
    state: Float32Stream,
    index: int,
    weights: Weights,
    hidden: Tensor,
    tangent: Tensor,
    directions: Directions,
    tokens: Tensor,
) -> tuple[Tensor, Tensor]:
    """The output (1, L, D) of a block and its tangent, J (ḣ, z): Jᵀλ is linear in λ, and its derivative is J."""
    hidden = hidden.detach().requires_grad_()
    with state.at(index), differentiable(weights) as leaves:
        output = state.run_block(index, hidden, tokens)
        dummy = torch.zeros_like(output, requires_grad=True)
        gradients = grad(output, [hidden, *leaves], dummy, create_graph=True)
        (leaving,) = grad(gradients, dummy, [tangent, *directions(weights)])
    return output.detach(), leaving


def _backward(
    state: Float32Stream,
    index: int,
    weights: Weights,
    hidden: Tensor,
    tangent: Tensor,
    gradient: Tensor,
    moving: Tensor,
    directions: Directions,
    tokens: Tensor,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """From λ and λ̇ behind a block: those in front of it, and zᵀHz of each weight.

    λ in front and the weights' gradients are ∇φ of φ(h, W, λ) = <λ, block(h; W)>; their derivative along (ḣ, z, λ̇) is,
    the Hessian of φ being symmetric, the gradient of <∇φ, (ḣ, z, λ̇)>, where the part of ∇φ for λ is the block's output.
    """
    hidden = hidden.detach().requires_grad_()
    with state.at(index), differentiable(weights) as leaves:
        drawn = directions(weights)
        output = state.run_block(index, hidden, tokens)
        gradients = grad(output, [hidden, *leaves], gradient, create_graph=True)
        entering, *products = grad([*gradients, output], [hidden, *leaves], [tangent, *drawn, moving])
    forms = [(z * Hz).sum(dtype=torch.float64) for z, Hz in zip(drawn, products, strict=True)]
    return gradients[0].detach(), entering, forms
