"""Gradients of the loss with respect to the weights, one block's in memory at a time, and to gates of its units.

Whatever the dtype of the model, all of this is computed in float32, as in `curvature.py`. Shapes: N windows, L tokens,
D hidden size, O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import grad

from harness.calibration.curvature import _differentiable, _Float32Stream, _in_float32, _loss, _matrices, _norms
from harness.calibration.progress import progress
from harness.core.geometry import Geometry
from harness.core.interfaces import Site
from harness.core.linalg import products_like
from harness.core.structure import SUBLAYERS, Cut, Part, Unit
from harness.models.decoder import Decoder
from harness.models.gates import gated
from harness.models.units import channel_lines, channels, check_part, head_lines, heads
from harness.runtime.memory import OffloadableTensors

Step = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Block, hidden states in front of it (1, L, D), gradient behind it (1, L, D), tokens (1, L) → gradient in front."""


@dataclass(frozen=True)
class BlockGradients:
    """One block's weights and gradients: `Gradients`."""

    decoder: Decoder
    index: int
    weights: Mapping[Site, Tensor]
    gradients: Mapping[Site, Tensor]
    squares: Mapping[Site, Tensor] = field(default_factory=dict)

    def by_unit(self, part: Part, values: Mapping[Site, Tensor], *, absolute: bool = False) -> dict[Site, Tensor]:
        """Sums (units,) of values (O, I) over the rows or columns that each head or channel has of each matrix.

        Args:
            absolute: add up the absolute values of the sums of single rows or columns.
        """
        found = {}
        for site, (dim, owner) in _owners(self.decoder, self.index, part).items():
            sums = values[site].sum(dim=1 - dim)  # over what all units have in common
            sums = sums.abs() if absolute else sums
            units = owner.to(sums.device)
            found[site] = sums.new_zeros(int(owner.max()) + 1).index_add(0, units, sums)
        return found


def _owners(decoder: Decoder, index: int, part: Part) -> dict[Site, tuple[int, Tensor]]:
    """Of each matrix of a part: the dimension along which its units lie, and the unit of each line."""
    if part == "head":
        lines_of, groups = head_lines, torch.arange(heads(decoder, index).groups).split(1)
    else:  # all at once: their lines come in order, those of gate and up one after the other
        lines_of, groups = channel_lines, (torch.arange(channels(decoder, index)),)
    found: dict[Site, tuple[int, Tensor]] = {}
    linears = decoder.linears(index)
    for units in groups:
        for name, rows, columns in lines_of(decoder, index, units):
            site, dim, lines = decoder.site(index, name), int(rows is None), columns if rows is None else rows
            assert lines is not None
            _, owner = found.setdefault(site, (dim, torch.empty(linears[site].weight.shape[dim], dtype=torch.long)))
            owner[lines] = units.repeat(len(lines) // len(units))
    return found


def gradients(decoder: Decoder, windows: Tensor, scope: Sequence[int], *, squares: bool) -> Iterator[BlockGradients]:
    """Gradients of the mean loss of windows (N, L), those of the last block of a scope first.

    Args:
        squares: the mean of the squared gradients of each window's own loss, too.
    """
    like = next(decoder.model.parameters())
    batches = windows.to(like.device).split(1)
    with products_like(like), _in_float32(decoder, batches) as state:
        sums = _Sums(state, scope, len(batches), squares)
        for index in _backward(state, batches, scope, sums.step):
            if index in scope:
                with state.at(index):
                    weights = {site: weight.detach() for site, weight in sums.leaves(index).items()}
                    yield BlockGradients(decoder, index, weights, sums.mean, sums.mean_square)
            sums.clear()


class _Sums:
    """Means over windows of the gradients of one block."""

    def __init__(self, state: _Float32Stream, scope: Sequence[int], windows: int, squares: bool) -> None:
        self._state, self._scope, self._windows, self._squares = state, scope, windows, squares
        self.clear()

    def clear(self) -> None:
        """Begin with another block."""
        self.mean: dict[Site, Tensor] = {}
        self.mean_square: dict[Site, Tensor] = {}

    def leaves(self, index: int) -> dict[Site, Tensor]:
        """The weights of a block whose gradients are asked for."""
        return _matrices(self._state, index) | _norms(self._state, index) if index in self._scope else {}

    @torch.enable_grad()
    def step(self, index: int, hidden: Tensor, gradient: Tensor, tokens: Tensor) -> Tensor:
        """A `Step` that adds a window's gradients."""
        hidden, weights = hidden.detach().requires_grad_(), self.leaves(index)
        with self._state.at(index), _differentiable(weights) as leaves:
            entering, *own = grad(self._state.run_block(index, hidden, tokens), [hidden, *leaves], gradient)
        for site, one in zip(weights, own, strict=True):
            _add(self.mean, site, one / self._windows)
            if self._squares:
                _add(self.mean_square, site, one.square() / self._windows)
        return entering


def _add(sums: dict[Site, Tensor], site: Site, value: Tensor) -> None:
    sums[site] = value if site not in sums else sums[site].add_(value)


def _backward(state: _Float32Stream, batches: Sequence[Tensor], scope: Sequence[int], step: Step) -> Iterator[int]:
    """The blocks from the last one to the first of a scope, each once `step` has had all its windows."""
    indices = state.decoder.indices
    with torch.no_grad():
        entering: list[OffloadableTensors] = [state.hidden]
        for index in indices:
            with state.at(index):
                pairs = zip(entering[-1], batches, strict=True)
                entering.append(state.placement.offloadable(state.run_block(index, *pair) for pair in pairs))
    last = zip(entering.pop(), batches, strict=True)
    behind = state.placement.offloadable(_gradient_of_loss(state, hidden, tokens) for hidden, tokens in last)
    for index in progress([index for index in reversed(indices) if index >= scope[0]], "gradients"):
        with state.placement.on_device(state.decoder.block(index)):
            triples = zip(entering.pop(), behind, batches, strict=True)
            behind = state.placement.offloadable(step(index, *triple) for triple in triples)
        yield index


@torch.enable_grad()
def _gradient_of_loss(state: _Float32Stream, hidden: Tensor, tokens: Tensor) -> Tensor:
    hidden = hidden.detach().requires_grad_()
    (gradient,) = grad(_loss(state, hidden, tokens), hidden)
    return gradient


def gate_gradients(
    decoder: Decoder, geometry: Geometry, windows: Tensor, scope: Sequence[int], parts: Sequence[Part]
) -> dict[Part, Tensor]:
    """The derivative of the mean loss of windows (N, L) with respect to a factor of 1 in front of each unit.

    A head or a channel has it at the input of the matrix that writes to the residual stream, a sub-layer or a block in
    front of all that it adds. In float64 on the CPU; 0 for blocks out of scope.

    Raises:
        Refusal: no cut is a gate of 0 in this family (`units.check_part`).
    """
    for part in parts:
        check_part(decoder, part)
    like = next(decoder.model.parameters())
    batches = windows.to(like.device).split(1)
    shapes = {part: (geometry.blocks, geometry.count(part)) for part in parts}
    found = {part: torch.zeros(shape, dtype=torch.float64) for part, shape in shapes.items()}
    with products_like(like), _in_float32(decoder, batches) as state:
        for _ in _backward(state, batches, scope, partial(_gate_step, state, geometry, set(scope), found)):
            pass
    return {
        part: sums.squeeze(1) / len(batches) if part in ("block", *SUBLAYERS) else sums / len(batches)
        for part, sums in found.items()
    }


@torch.enable_grad()
def _gate_step(
    state: _Float32Stream, geometry: Geometry, scope: set[int], found: dict[Part, Tensor], index: int, hidden: Tensor,
    gradient: Tensor, tokens: Tensor,
) -> Tensor:  # fmt: skip
    """A `Step` that adds a window's derivatives with respect to the gates of a block."""
    hidden = hidden.detach().requires_grad_()
    wanted = [part for part in ("head", "channel") if part in found and index in scope]
    with state.at(index), ExitStack() as stack:
        gates = [_gate(state.decoder, index, part, stack) for part in wanted]
        output = state.run_block(index, hidden, tokens)
        entering, *own = grad(output, [hidden, *gates], gradient)
    for part, one in zip(wanted, own, strict=True):
        found[part][index] += one.unflatten(0, (geometry.count(part), -1)).sum(1).double().cpu()
    if index not in scope:
        return entering
    if "block" in found:
        found["block"][index] += _dot(gradient, output - hidden)
    if {"attention", "mlp"} & set(found):
        _add_sublayers(state, geometry.parallel, found, index, (hidden, output), gradient, tokens)
    return entering


def _gate(decoder: Decoder, index: int, part: str, stack: ExitStack) -> Tensor:
    """Factors of 1 (I,) at the inputs of the matrix through which a part writes to the residual stream."""
    name = decoder.anatomy.attention_output if part == "head" else decoder.anatomy.mlp_output
    linear = decoder.linears(index)[decoder.site(index, name)]
    gate = torch.ones_like(linear.weight[0], requires_grad=True)

    def multiply(_: nn.Module, positional: tuple[Any, ...]) -> tuple[Any, ...]:
        return (positional[0] * gate,)

    stack.callback(linear.register_forward_pre_hook(multiply).remove)
    return gate


def _add_sublayers(
    state: _Float32Stream, parallel: bool, found: dict[Part, Tensor], index: int, ends: tuple[Tensor, Tensor],
    gradient: Tensor, tokens: Tensor,
) -> None:  # fmt: skip
    """The derivative in front of what each sub-layer adds: with it goes the gradient behind the addition."""
    hidden, output = (end.detach() for end in ends)
    without = {part: Cut(frozenset({Unit(part, index)})) for part in SUBLAYERS}
    with state.at(index):
        with gated(state.decoder, without["mlp"]), torch.no_grad():
            middle = state.run_block(index, hidden, tokens)
        behind = gradient
        if not parallel:
            middle = middle.requires_grad_()
            with gated(state.decoder, without["attention"]):
                (behind,) = grad(state.run_block(index, middle, tokens), middle, gradient)
    for part, one in (("attention", _dot(behind, middle - hidden)), ("mlp", _dot(gradient, output - middle))):
        if part in found:
            found[part][index] += one


def _dot(one: Tensor, other: Tensor) -> Tensor:
    return (one.detach().double() * other.detach().double()).sum().cpu()
