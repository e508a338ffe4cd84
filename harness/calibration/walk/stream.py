"""Walk a model block by block over calibration windows, each block seeing what was done to the ones before.

The model itself makes the arguments of its blocks: they are caught by hooks in one forward per batch shape and
replayed, so nothing here knows a mask, a rotary embedding or a family. Where they follow from the tokens themselves
they are caught for every batch. Shapes: B windows, L tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from harness.core.interfaces import FeedForward
from harness.core.statistic import ActivationStats, Statistic
from harness.models.decoder import Decoder
from harness.models.pieces import (
    Stop,
    beside_hidden,
    catch_arguments,
    first,
    follow_tokens,
    for_windows,
    logits_behind,
    same_arguments,
)
from harness.models.placement import placement_of
from harness.runtime.errors import Failure
from harness.runtime.memory import OffloadableTensors
from harness.runtime.oom import with_oom_backoff
from harness.runtime.plain import plain

T = TypeVar("T")


class Stream:
    """The hidden states (B, L, D) of all batches in front of the current block, and how to run that block."""

    def __init__(self, decoder: Decoder, batches: Sequence[Tensor], *, exact: bool = False) -> None:
        self.decoder, self.exact = decoder, exact
        self.model, self.blocks = decoder.model, decoder.modules
        self.placement = placement_of(decoder)
        self.batches = batches = [batch.to(self.placement.device) for batch in batches]
        self.window = batches[0].shape[1]
        self._arguments: dict[tuple[int, ...], list[dict[str, Any]]] = {}
        self._of_tokens: dict[bytes, list[dict[str, Any]]] = {}
        self._first: dict[tuple[int, ...], dict[str, Any]] = {}
        self.follows_tokens = follow_tokens(self.blocks)
        self._gives_tuples = False
        self._together: int | None = None
        self.learn(batches)
        self.hidden = self.placement.offloadable(self.embed(batch) for batch in batches)
        if self.follows_tokens:
            self.learn(batches)

    def learn(self, batches: Sequence[Tensor]) -> None:
        """Catch what blocks are called with for shapes of batches (B, L) that are new, or for their tokens.

        All at once, while nobody observes what runs.
        """
        for batch in batches:
            if tuple(batch.shape) not in self._arguments:
                self.with_oom_backoff(partial(self._remember_arguments, batch.to(self.placement.device)))
            for piece in self.pieces(batch) if self.follows_tokens else ():
                self._arguments_of(piece)

    def run_block(self, index: int, hidden: Tensor, tokens: Tensor) -> Tensor:
        """The block's output (B, L, D) with the arguments that the model itself would give it for tokens (B, L).

        Those of a single window fit batches of any size, unless they follow from its tokens.
        """
        pairs = zip(self.pieces(hidden), self.pieces(tokens), strict=True)
        pieces = [self.run_piece(index, piece, behind) for piece, behind in pairs]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def pieces(self, batch: Tensor) -> Sequence[Tensor]:
        """Hidden states (B, L, D), or tokens (B, L), in so many windows at once as memory allows."""
        return [batch] if self._together is None else batch.split(self._together)

    def with_oom_backoff(self, work: Callable[[], T]) -> T:
        """Result of `work`; where memory runs out it is done again, with half as many windows at once from then on.

        Raises:
            Failure: not even one window fits.
        """
        start = self._together or max(len(batch) for batch in self.batches)

        def sized(size: int) -> T:
            if size < start:
                self._together = size
                if self.follows_tokens:
                    self.learn(self.batches)
                elif (1, self.window) not in self._arguments:  # now, while nobody observes what runs
                    self._remember_arguments(self.batches[0][:1])
            return work()

        return with_oom_backoff(sized, start, "calibration")

    def _remember_arguments(self, batch: Tensor) -> None:
        windows = batch[: self._together or len(batch)]
        self._arguments[tuple(windows.shape)] = self.arguments(windows)

    def run_piece(self, index: int, hidden: Tensor, tokens: Tensor) -> Tensor:
        """The same for no more windows than are run at once."""
        shape = tuple(hidden.shape[:2])
        if self.follows_tokens:
            arguments = self._arguments_of(tokens)
        elif shape in self._arguments:
            arguments = self._arguments[shape]
        else:
            arguments = [for_windows(one, shape[0]) for one in self._arguments[1, shape[1]]]
        position = self.decoder.position(index)
        return first(self.blocks[position](hidden, **arguments[position]))

    def _arguments_of(self, tokens: Tensor) -> list[dict[str, Any]]:
        key = tokens.cpu().numpy().tobytes()
        if key not in self._of_tokens:
            self._of_tokens[key] = self.arguments(tokens.to(self.placement.device))
        return self._of_tokens[key]

    def logits(self, hidden: Tensor) -> Tensor:
        """The model's own head on what the last block gave (B, L, D)."""
        return logits_behind(self.model, self.blocks, hidden, tuples=self._gives_tuples)

    @torch.no_grad()
    def embed(self, batch: Tensor) -> Tensor:
        caught: list[Tensor] = []

        def stop(block: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
            caught.append(positional[0] if positional else named["hidden_states"])
            self._compare(tuple(batch.shape), beside_hidden(block, positional, named))
            raise Stop

        handle = self.blocks[0].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self.model(batch, use_cache=False)
        except Stop:
            pass
        finally:
            handle.remove()
        return caught[0]

    def _compare(self, shape: tuple[int, ...], arguments: dict[str, Any]) -> None:
        """Find out whether the first block is called otherwise for these tokens than for others of their shape."""
        known = self._arguments.get(shape)
        if not same_arguments(known[0] if known else self._first.setdefault(shape, arguments), arguments):
            self.follows_tokens = True

    @torch.no_grad()
    def arguments(self, batch: Tensor) -> list[dict[str, Any]]:
        """Arguments of every block for tokens (B, L), beside the hidden states."""
        caught, self._gives_tuples = catch_arguments(self.model, self.blocks, batch)
        return caught


class StreamedBlock:
    """One block of a stream: a `BlockView`."""

    def __init__(self, stream: Stream, index: int, needs_outputs: bool) -> None:
        self._of(stream.decoder, index)
        self._stream, self._placement = stream, stream.placement
        self._outputs: OffloadableTensors | None = None
        self._needs_outputs = needs_outputs

    def _of(self, decoder: Decoder, index: int) -> None:
        self.index, self.written = index, False
        self.diagnostics: dict[str, Any] = {}
        self._decoder, self._linears, self._module = decoder, decoder.linears(index), decoder.block(index)

    @property
    def feed_forward(self) -> FeedForward:
        """The part behind attention."""
        return self._decoder.feed_forward(self.index)

    @property
    def stream(self) -> Stream:
        """The hidden states that this block runs over."""
        return self._stream

    @property
    def weights(self) -> Mapping[str, Tensor]:
        return {site: linear.weight.data for site, linear in self._linears.items()}

    def write(self, site: str, weight: Tensor) -> None:
        """Put a new weight (O, I) in place; what the block gave before no longer holds."""
        self._linears[site].weight.data.copy_(weight)
        self._placement.wrote(self._module)
        self._outputs, self.written = None, True

    def renew(self) -> None:
        """The weights of the block were written on another device, which this one follows."""
        self._placement.wrote(self._module)
        self._outputs = None

    def log(self, **facts: Any) -> None:
        """Facts about the pruning of this block, for the record."""
        self.diagnostics |= plain(facts)

    @torch.no_grad()
    def observe(self, statistic: Statistic | Mapping[str, Statistic]) -> dict[str, ActivationStats]:
        """The statistic of the linears' inputs, window by window; linears with a common input share one value.

        One statistic is that of every linear; a mapping says it by site, and what it leaves out is not observed. Sites
        with a common input have a common statistic: the first one that the mapping names. Unless the block's outputs
        are wanted, each forward ends where the last of these inputs is known.
        """
        wanted = statistic if isinstance(statistic, Mapping) else dict.fromkeys(self._linears, statistic)
        groups = [[site for site in group if site in wanted] for group in self._decoder.inputs(self.index)]
        # from the start where memory runs out: half of a block may have been seen then
        states = self._stream.with_oom_backoff(partial(self._accumulated, wanted, [group for group in groups if group]))
        return {site: states[group[0]] for group in groups for site in group}

    def _accumulated(
        self, wanted: Mapping[str, Statistic], groups: Sequence[Sequence[str]]
    ) -> dict[str, ActivationStats]:
        states: dict[str, ActivationStats] = {}
        handles, awaited = [], set[str]()
        for first_site, *_ in groups:
            linear = self._linears[first_site]
            states[first_site] = wanted[first_site].init(linear.in_features, linear.weight.device)
            hook = self._accumulate(states, first_site, wanted[first_site], awaited)
            handles.append(linear.register_forward_pre_hook(hook))
        outputs = self._placement.offloadable()
        try:
            for hidden, tokens in zip(self._stream.hidden, self._stream.batches, strict=True):
                given = []
                for piece, behind in zip(self._stream.pieces(hidden), self._stream.pieces(tokens), strict=True):
                    awaited.update(states)
                    with suppress(Stop):
                        given.append(self._stream.run_piece(self.index, piece, behind))
                if self._needs_outputs:
                    outputs.append(given[0] if len(given) == 1 else torch.cat(given))
        finally:
            for handle in handles:
                handle.remove()
        if self._needs_outputs:
            self._outputs = outputs
        return states

    def _accumulate(
        self, states: dict[str, ActivationStats], name: str, statistic: Statistic, awaited: set[str]
    ) -> Any:
        window, exact = self._stream.window, self._stream.exact

        def hook(_: nn.Module, positional: tuple[Tensor, ...]) -> None:
            tokens = positional[0].detach()  # (B, L, I), or (B · L, I) where a family flattens it
            states[name] = statistic.see(states[name], tokens.reshape(-1, window, tokens.shape[-1]), exact=exact)
            awaited.discard(name)
            if not awaited and not self._needs_outputs:
                raise Stop

        return hook

    @torch.no_grad()
    def advance(self) -> None:
        """Move the stream's hidden states behind this block, as its weights are now."""
        if self._outputs is None:
            for position, hidden in enumerate(self._stream.hidden):
                run = partial(self._stream.run_block, self.index, hidden, self._stream.batches[position])
                self._stream.hidden[position] = self._stream.with_oom_backoff(run)
        else:
            self._stream.hidden = self._outputs


class _Unseen(StreamedBlock):
    """A block without calibration: weights can be read and written, nothing can be observed."""

    def __init__(self, decoder: Decoder, index: int) -> None:
        self._of(decoder, index)
        self._placement = placement_of(decoder)
        self._outputs = None

    def observe(self, statistic: Statistic | Mapping[str, Statistic]) -> dict[str, ActivationStats]:
        raise Failure(
            "a method or an allocator observes inputs and does not say so: a method has to name its statistic, an "
            "allocator needs_calibration = True."
        )
