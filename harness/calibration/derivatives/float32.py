"""Blocks in float32 while they run, their weights as leaves of a graph: what gradients and traces of curvature share.

float16 does not hold the second derivatives of a deep model, and bfloat16 moves squared gradients by percents. A block
has float32 weights while it runs; what is outside the blocks has them throughout. The values are the model's own, so
that derivatives are those of a float32 run. Shapes: L tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from harness.calibration.walk.stream import Stream
from harness.core.interfaces import Site
from harness.models.decoder import Decoder
from harness.models.losses import next_token_loss

Weights = Mapping[Site, Tensor]


@contextmanager
def in_float32(decoder: Decoder, batches: Sequence[Tensor]) -> Iterator[Float32Stream]:
    """A stream over windows (1, L), computed in float32 for as long as this lasts."""
    inside = {id(tensor) for tensor in _tensors(decoder.modules)}
    with _as_float32(tensor for tensor in _tensors(decoder.model) if id(tensor) not in inside):
        yield Float32Stream(decoder, batches)


class Float32Stream(Stream):
    """A stream whose blocks are float32 while they run; whoever looks at their weights does so `at` the block."""

    @contextmanager
    def at(self, index: int) -> Iterator[None]:
        """A block is on the device, in float32."""
        block = self.decoder.block(index)
        with self.placement.on_device(block), _as_float32(_tensors(block)):
            yield

    def arguments(self, batch: Tensor) -> list[dict[str, Any]]:
        """As any stream: the first block runs."""
        with self.at(self.decoder.indices[0]):
            return super().arguments(batch)

    def run_block(self, index: int, hidden: Tensor, tokens: Tensor) -> Tensor:
        """As any stream."""
        with self.at(index):
            return super().run_block(index, hidden, tokens)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


@contextmanager
def _as_float32(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Inside, tensors of 16 bits hold the same numbers in float32; behind it, what they held."""
    short = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.dtype.itemsize == 2]
    held = [tensor.data for tensor in short]
    try:
        for tensor in short:
            tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, data in zip(short, held, strict=True):
            tensor.data = data


def matrices(state: Stream, index: int) -> dict[Site, Tensor]:
    """The weights (O, I) of the linears of a block."""
    return {site: linear.weight for site, linear in state.decoder.linears(index).items()}


def norms(state: Stream, index: int) -> dict[Site, Tensor]:
    """The weights (D,) of the norms of a block."""
    named = state.decoder.block(index).named_parameters()
    own = {name: p for name, p in named if p.dim() == 1 and name.endswith(".weight")}
    return {state.decoder.site(index, name.removesuffix(".weight")): p for name, p in own.items()}


@contextmanager
def differentiable(weights: Weights) -> Iterator[list[Tensor]]:
    """The weights as a list, requiring gradients for as long as this lasts."""
    flags = [weight.requires_grad for weight in weights.values()]
    try:
        yield [weight.requires_grad_(True) for weight in weights.values()]
    finally:
        for weight, flag in zip(weights.values(), flags, strict=True):
            weight.requires_grad_(flag)


def window_loss(state: Stream, hidden: Tensor, tokens: Tensor) -> Tensor:
    """The loss of a window (1, L) from the last hidden state (1, L, D)."""
    return next_token_loss(state.logits(hidden), tokens)
