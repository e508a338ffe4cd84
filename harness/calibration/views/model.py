"""Read-only questions to the model that allocators and planners may ask."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.calibration.cache.prefixes import PrefixCache
from harness.calibration.cache.reuse import ReuseCache
from harness.calibration.cache.values import Cache, CachedValue
from harness.calibration.derivatives.curvature import REVISION, fisher_trace, hessian_trace
from harness.calibration.levels.assembler import LevelAssembler, build_assembler, dense_again
from harness.calibration.walk.blocks import stream
from harness.calibration.walk.devices import ReplicatedBlock
from harness.calibration.walk.reference import is_beside_dense, walk_for
from harness.calibration.walk.stream import StreamedBlock
from harness.catalogue import name_of
from harness.core.allocation import Allocation
from harness.core.interfaces import Database, Draws, Objective, Trace
from harness.core.pattern import Pattern
from harness.core.statistic import Statistic
from harness.methods.each import as_block_method
from harness.models.decoder import Decoder
from harness.models.machine import available
from harness.models.placement import WeightsOnDevice, placement_of
from harness.runtime.errors import Refusal
from harness.runtime.plain import plain

PREFIX_SHARE = 0.25
"""The share of the free memory that hidden states in front of pruned blocks may take; a forecast does not count it."""


class LiveModelView:
    """The model as it is now, restricted to the blocks in scope: a `ModelView`.

    Args:
        batches: the calibration windows (B, L).
        draw: further windows (count, L) of the calibration text, from a seed of their own, of another L if asked; None
            takes `batches`.
        pack: windows (count, L) of its packed documents.
        devices: further GPUs, for traces.
        exact: sum statistics in the order of the released codes.
        sharing: what points of this model share; None asks the model anew.
    """

    def __init__(
        self,
        decoder: Decoder,
        batches: Sequence[Tensor],
        scope: Sequence[int],
        *,
        method: Any = None,
        seed: int = 0,
        draw: Callable[..., Tensor] | None = None,
        pack: Callable[[int, int], Tensor] | None = None,
        cache: Cache | None = None,
        weights_sha256: str | None = None,
        devices: Sequence[torch.device] = (),
        exact: bool = False,
        reuse: ReuseCache | None = None,
    ) -> None:
        self._decoder, self._batches, self._scope = decoder, batches, scope
        self._draw, self._pack, self._cache, self._devices = draw, pack, cache or Cache(), devices
        self._walk, self._exact = partial(reuse.walk if reuse else stream, exact=exact), exact
        self._prefix: PrefixCache | None = None
        self.method, self.seed, self.weights_sha256 = method, seed, weights_sha256
        self._sharing = reuse
        self.diagnostics: dict[str, Any] = {}

    @property
    def blocks(self) -> tuple[tuple[str, ...], ...]:
        """The sites of each block in scope."""
        return tuple(tuple(self._decoder.linears(index)) for index in self._scope)

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Site → (outputs, inputs), over the blocks in scope."""
        return {site: (linear.out_features, linear.in_features) for site, linear in self._linears.items()}

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Site → weight (O, I), over the blocks in scope."""
        return WeightsOnDevice(self._linears, placement_of(self._decoder))

    @property
    def window(self) -> int:
        """The length L of a calibration window."""
        return int(self._batches[0].shape[1])

    @property
    def _linears(self) -> dict[str, nn.Linear]:
        found: dict[str, nn.Linear] = {}
        for index in self._scope:
            found |= self._decoder.linears(index)
        return found

    def observe(self, statistic: Statistic) -> Iterator[StreamedBlock | ReplicatedBlock]:
        """The blocks in scope over the calibration windows, nothing being changed."""
        return self._walk(self._decoder, self._batches, self._scope, edited=False, label="probe")

    @torch.no_grad()
    def pruned(
        self, method: Any, allocation: Allocation, *, reuse_prefix: bool = False
    ) -> Iterator[StreamedBlock | ReplicatedBlock]:
        """The blocks as a run would leave them, each once it is pruned; the model is dense again at the end.

        Args:
            reuse_prefix: a walk with this method went before; blocks that are as it left them are left out, as far as
                what is in front of the first other one was kept.
        """
        where = (self._decoder, self._batches, self._scope)
        at_once = self._sharing is not None and self._sharing.dense_inputs  # then what is seen is not what prunes
        with dense_again(self._decoder, self._scope):
            beside_dense = is_beside_dense(method)
            walk: Callable[..., Iterator[StreamedBlock | ReplicatedBlock]] = self._walk
            self._prefix = None if at_once or beside_dense else self._prefix_for(reuse_prefix)
            if beside_dense:
                walk = partial(walk_for(method), exact=self._exact)
            if self._prefix:
                asked = [{site: allocation[site] for site in block} for block in self.blocks]
                walk = partial(stream, exact=self._exact, resume_at=self._prefix.resume_at(asked))
            for block in walk(*where, edited=True, label="probe"):
                patterns = {site: allocation[site] for site in block.weights}
                for site, result in as_block_method(method).prune_block(block, patterns).items():
                    block.write(site, result.weight)
                if self._prefix:
                    assert isinstance(block, StreamedBlock)
                    self._prefix.add(block.index, patterns, block.stream.hidden)
                    if block.index != self._scope[-1]:
                        block.keep_outputs()  # whoever looks at it as it is now runs it as the stream would
                if not at_once:
                    yield block
            if at_once:
                yield from stream(*where, edited=False, label="probe")

    def _prefix_for(self, reuse_prefix: bool) -> PrefixCache | None:
        """The trail of the walk before, or an empty one; None where nothing runs, or on several devices."""
        if not self._batches or placement_of(self._decoder).others:
            return None
        if reuse_prefix and self._prefix:
            return self._prefix
        return PrefixCache(int(PREFIX_SHARE * available(self._batches[0].device)))

    def fisher_trace(self, windows: int) -> dict[str, Trace]:
        """Of the loss of the first calibration windows, at most so many; cached."""

        def compute(chosen: Tensor) -> Mapping[str, Trace]:
            return fisher_trace(self._decoder, chosen, self._scope, self._devices)

        return self._traces("fisher", windows, compute)

    def hessian_trace(self, windows: int, probes: int, draws: Draws) -> dict[str, Trace]:
        """Of the loss of the first calibration windows, at most so many, by Hutchinson; cached."""

        def compute(chosen: Tensor) -> Mapping[str, Trace]:
            return hessian_trace(self._decoder, chosen, self._scope, probes, draws, self.seed)

        return self._traces("hessian", windows, compute, probes=probes, draws=draws, seed=self.seed)

    def _traces(
        self, purpose: str, windows: int, compute: Callable[[Tensor], Mapping[str, Trace]], **settings: Any
    ) -> dict[str, Trace]:
        chosen = torch.cat(list(self._batches))[:windows]
        entry = self.cached(purpose, {**settings, "windows": len(chosen), "revision": REVISION})
        kept = entry.read()
        if kept is None:
            kept = {site: list(trace) for site, trace in compute(chosen).items()}
            entry.write(kept)
        return {site: Trace(*trace) for site, trace in kept.items()}

    def assembler(
        self,
        method: Any,
        levels: Mapping[str, Sequence[Pattern]],
        *,
        inputs: Allocation | None,
        windows: int,
        objective: Objective,
        database: Database,
    ) -> LevelAssembler:
        """Candidates over these levels, judged on `windows` further windows of the calibration text.

        Raises:
            Refusal: the method cannot prune a matrix to several levels beside one another.
        """
        if is_beside_dense(method):
            raise Refusal(
                f"a search prunes all matrices to many levels, and method={name_of(method)} writes each as it goes; "
                "take another allocator.pruner."
            )
        drawn = self._draw(windows) if self._draw else torch.cat(list(self._batches))[:windows]
        cache = self._cache
        folder = cache.folder or Path(tempfile.gettempdir())
        return build_assembler(
            self._decoder, self._batches, self._scope, method, levels,
            inputs=inputs, windows=drawn, objective=objective, limit=database.limit,
            folder=folder if database.place == "disk" else None, gib=cache.gib if cache.folder else None,
        )  # fmt: skip

    def cached(self, purpose: str, settings: Mapping[str, Any]) -> CachedValue:
        """A value of this model, calibration and scope."""
        return self._cache.entry(purpose, settings)

    def remembered(
        self, purpose: str, settings: Mapping[str, Any], compute: Callable[[], Any], *, calibrated: bool = True
    ) -> Any:
        """A score of this model, scope and, if `calibrated`, calibration, as plain values."""
        if self._sharing is None:
            return compute()
        known_by = {**settings, "scope": [self._scope[0], self._scope[-1] + 1], "calibrated": calibrated}
        return self._sharing.remembered(purpose, known_by, compute, calibrated=calibrated)

    def log(self, **facts: Any) -> None:
        """Facts for the record."""
        self.diagnostics |= plain(facts)
