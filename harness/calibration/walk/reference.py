"""A walk over two streams: the model as it is pruned, and the dense one beside it.

At every block both have run: the hidden states in front of it differ by what was done to the blocks before. Inside the
block the dense weights are put in place for the dense stream and taken out again, so that there is one model only.
Shapes: B windows, L tokens, D hidden size, O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from harness.calibration.walk.blocks import stream
from harness.calibration.walk.stream import Stream, StreamedBlock
from harness.core.interfaces import Difference, behind
from harness.core.linalg import is_short_on_gpu
from harness.core.statistic import Gram, gram
from harness.models.decoder import Decoder
from harness.models.pieces import Stop
from harness.runtime.memory import OffloadableTensors
from harness.runtime.progress import progress

ROUNDINGS = 4
"""Units in the last place by which a sum may differ from its terms."""


def is_beside_dense(method: Any) -> bool:
    """Return whether a method compares the pruned model with the dense one, and so needs this walk."""
    return bool(behind(method).beside_dense)


class ReferencedBlock(StreamedBlock):
    """One block of the pruned stream that knows what the dense model does on the same tokens."""

    def __init__(self, stream: Stream, index: int, reference: OffloadableTensors) -> None:
        super().__init__(stream, index, needs_outputs=False)
        self._reference = reference
        self.dense = {site: linear.weight.data.clone() for site, linear in self._linears.items()}
        decoder = stream.decoder
        self.groups = decoder.inputs(index)
        self._middle, self._last = decoder.site(index, decoder.anatomy.attention_output), self.groups[-1][0]

    @torch.no_grad()
    def difference(self, sites: Sequence[str]) -> Difference:
        """The inputs of linears that read the same, beside the dense model's on the same tokens.

        Raises:
            Failure: not even one window fits in memory.
        """
        return self._stream.with_oom_backoff(partial(self._sums, tuple(sites)))

    def _sums(self, sites: tuple[str, ...]) -> Difference:
        linear = self._linears[sites[0]]
        outputs, inputs = linear.weight.shape
        made = partial(torch.zeros, device=linear.weight.device)
        seen, shift = gram.init(inputs, linear.weight.device), made(inputs, inputs)
        drift = made(outputs, inputs) if sites[0] in (self._middle, self._last) and self.adds else None
        window = self._stream.window
        for batches in zip(self._stream.hidden, self._reference, self._stream.batches, strict=True):
            for pruned, dense, tokens in zip(*map(self._stream.pieces, batches), strict=True):
                x, rest = self._run(sites[0], pruned, tokens)
                with self._dense_weights():
                    x_dense, rest_dense = self._run(sites[0], dense, tokens)
                seen = gram.see(seen, x.reshape(-1, window, inputs), exact=self._stream.exact)
                shift += _product(x_dense - x, x)
                if drift is not None:
                    drift += _product(rest_dense - rest, x)
        twice = 2 / seen.windows  # as `gram` is scaled
        assert isinstance(seen, Gram)
        return Difference(seen, shift.mul_(twice), None if drift is None else drift.mul_(twice))

    @cached_property
    def adds(self) -> bool:
        """True if the block adds the outputs of its parts to the residual stream as they are.

        A norm or a factor between them would make the target another one. Found out by adding the last outputs again.
        """
        few = (self._stream.pieces(part[0])[0] for part in (self._stream.hidden, self._stream.batches))
        run = partial(self._stream.run_piece, self.index, *few)
        own = run()
        added: list[Tensor] = []

        def again(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            added.append(output.clone())
            return 2 * output

        handle = self._linears[self._last].register_forward_hook(again)
        try:
            twice = run()
        finally:
            handle.remove()
        wanted, rounding = added[0].reshape(own.shape).float(), torch.finfo(own.dtype).eps
        off = (twice.float() - own.float() - wanted).abs()
        return bool((off <= ROUNDINGS * rounding * (own.abs() + twice.abs()).float() + 0.01 * wanted.abs()).all())

    def _run(self, site: str, hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs (T, I) of a linear, and what its outputs (T, O) are added to in the residual stream."""
        caught: dict[str, Tensor] = {}

        def before(_: nn.Module, positional: tuple[Tensor, ...]) -> None:
            caught["x"] = positional[0].detach().flatten(0, -2)
            if site != self._last:
                raise Stop

        def behind(_: nn.Module, __: Any, output: Tensor) -> None:
            caught["y"] = output.flatten(0, -2).clone()  # what is behind may add to it in place

        output = hidden
        linear = self._linears[site]
        with ExitStack() as stack:
            stack.callback(linear.register_forward_pre_hook(before).remove)
            stack.callback(linear.register_forward_hook(behind).remove)
            with suppress(Stop):
                output = self._stream.run_piece(self.index, hidden, tokens)
        rest = output.flatten(0, -2)
        return caught["x"], rest - caught["y"] if "y" in caught else rest

    @contextmanager
    def _dense_weights(self) -> Iterator[None]:
        """While inside, the block has its dense weights."""
        now = {site: linear.weight.data for site, linear in self._linears.items()}
        self._point(self.dense)
        try:
            yield
        finally:
            self._point(now)

    def _point(self, weights: Mapping[str, Tensor]) -> None:
        for site, weight in weights.items():
            self._linears[site].weight.data = weight

    @torch.no_grad()
    def advance(self) -> None:
        """Move both streams behind this block: the pruned one as its weights are now, the dense one as they were."""
        with self._dense_weights():
            for position, (hidden, tokens) in enumerate(zip(self._reference, self._stream.batches, strict=True)):
                run = partial(self._stream.run_block, self.index, hidden, tokens)
                self._reference[position] = self._stream.with_oom_backoff(run)
        super().advance()


def _product(left: Tensor, right: Tensor) -> Tensor:
    """leftᵀ right (I, J) over tokens (T, ·), summed in float32."""
    if is_short_on_gpu(right):
        return torch.mm(left.T, right, out_dtype=torch.float32)
    return left.float().T @ right.float()


def walk_for(method: Any) -> Callable[..., Iterator[Any]]:
    """The walk over blocks that a method needs."""
    return stream_beside_dense if is_beside_dense(method) else stream


def stream_beside_dense(
    decoder: Decoder, batches: Sequence[Tensor], scope: Sequence[int], *, edited: bool, label: str,
    exact: bool = False,
) -> Iterator[ReferencedBlock]:  # fmt: skip
    """The blocks of `scope` in order, each over both streams; further devices of the host take no share.

    Twice the hidden states stay from block to block, and a block's matrices are there twice while it is pruned.
    """
    assert edited, "the dense stream is of use where blocks are pruned"
    walk = Stream(decoder, batches, exact=exact)
    reference: OffloadableTensors | None = None
    try:
        for index in progress(decoder.until(scope), label):
            with walk.placement.on_device(decoder.block(index)):
                if index not in scope:  # up to the first pruned block both streams are one
                    StreamedBlock(walk, index, needs_outputs=False).advance()
                    continue
                reference = reference or walk.placement.offloadable(hidden.clone() for hidden in walk.hidden)
                block = ReferencedBlock(walk, index, reference)
                yield block
                if index != scope[-1]:
                    block.advance()
    finally:
        walk.placement.settle()
