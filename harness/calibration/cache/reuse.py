"""Values that points of one model share unchanged: statistics of dense inputs, equal decisions, scores, orders.

Every point's first block sees what the dense model gives it, so what is seen there is seen once; so are all blocks of a
dense model, and with `inputs=dense` those of every point. Points whose decisions are equal up to a block have equal
blocks up to there. Nothing here is an approximation: a point is, bit for bit, what it is in a process of its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from harness.calibration.walk.blocks import stream
from harness.calibration.walk.stream import StreamedBlock, _Unseen
from harness.catalogue import describe
from harness.core.allocation import Allocation
from harness.core.interfaces import Pruned, Site
from harness.core.pattern import Pattern
from harness.core.statistic import ActivationStats, Statistic
from harness.methods.each import as_block_method
from harness.models.decoder import Decoder

SMALL = 1 << 20
"""Bytes of a statistic that is kept for every block of a dense model: norms are, Gram matrices are not."""


@dataclass
class _Entry:
    value: Any
    size: int
    used: int
    on_host: bool = False


class Store:
    """Values by key, at most `limit` bytes of them on their device and `host` more in host memory.

    Where both are full, what was not used for the most points goes; what this point used stays, and the new value is
    not kept.
    """

    def __init__(self, device: torch.device, limit: int = 0, host: int = 0) -> None:
        self.device, self.limit, self.host = device, limit, host
        self.point = 0
        self._entries: dict[Hashable, _Entry] = {}

    def __contains__(self, key: Hashable) -> bool:
        """Return whether it is kept, which it then is to the end of this point."""
        if found := self._entries.get(key):
            found.used = self.point
        return found is not None

    def get(self, key: Hashable) -> Any | None:
        """The value on its device, or None."""
        if key not in self:
            return None
        entry = self._entries[key]
        return _moved(entry.value, self.device) if entry.on_host else entry.value

    def put(self, key: Hashable, value: Any) -> None:
        """Keep a value, or its newer state, where there is room."""
        size = bytes_of(value)
        known = self._entries.get(key)
        if known and known.size == size:
            return
        self._entries.pop(key, None)
        while not (place := self._place(size)) and (oldest := self._oldest()):
            del self._entries[oldest]
        if place:
            on_host = place == "host"
            kept = _moved(value, torch.device("cpu")) if on_host else value
            self._entries[key] = _Entry(kept, size, self.point, on_host)

    def clear(self) -> None:
        """Keep nothing."""
        self._entries.clear()

    def used(self, *, on_host: bool = False) -> int:
        """Bytes that are taken."""
        return sum(entry.size for entry in self._entries.values() if entry.on_host == on_host)

    def _place(self, size: int) -> str:
        if self.used() + size <= self.limit:
            return "device"
        return "host" if self.used(on_host=True) + size <= self.host else ""

    def _oldest(self) -> Hashable | None:
        left = [(entry.used, number, key) for number, (key, entry) in enumerate(self._entries.items())]
        used, _, key = min(left, default=(self.point, 0, None), key=lambda item: item[:2])
        return key if used < self.point else None


@dataclass
class ReuseCache:
    """A point's access to a store: what it takes and leaves.

    Args:
        cache_key: what its statistics depend on beside the weights: the calibration windows, and how they are computed.
        dense_inputs: whether every block is calibrated on what the dense model gives it, which is another experiment.
    """

    store: Store
    paths: Store
    cache_key: str = ""
    dense_inputs: bool = False
    tally: Counter[str] = field(default_factory=Counter)
    """How often something kept was taken, by its kind."""

    def walk(
        self, decoder: Decoder, batches: Sequence[Tensor], scope: Sequence[int], *, edited: bool, label: str,
        exact: bool = False,
    ) -> Iterator[StreamedBlock]:  # fmt: skip
        """The blocks that `stream` gives; no block runs before somebody asks for what is not kept."""
        edited = edited and not self.dense_inputs
        start: Any = partial(stream, decoder, batches, scope, edited=edited, label=label, exact=exact)
        walk = _Walk(self, start, scope)
        for index in scope:
            block = CachedBlock(walk, decoder, index)
            yield block
            block.settle()

    def remembered(
        self, purpose: str, settings: Mapping[str, Any], compute: Callable[[], Any], *, calibrated: bool = True
    ) -> Any:
        """A small value of the dense model and, if `calibrated`, its calibration, computed once."""
        key = (purpose, self.cache_key if calibrated else "", json.dumps(dict(settings), sort_keys=True))
        if (value := self.taken("scores", self.store, key)) is None:
            value = compute()
            self.store.put(key, deepcopy(value))
        return deepcopy(value)

    def method(self, method: Any, allocation: Allocation) -> Any:
        """The method, which takes over blocks that an earlier point pruned in the same way from the same inputs."""
        return _Remembering(method, allocation, self)

    def taken(self, kind: str, store: Store, key: Hashable) -> Any | None:
        """Value kept under a key, counted."""
        value = store.get(key)
        self.tally[kind] += value is not None
        return value


class _Walk:
    """The stream behind shared blocks, which starts when it is needed and stays as far back as it can."""

    def __init__(self, reuse: ReuseCache, start: Callable[[], Iterator[StreamedBlock]], scope: Sequence[int]) -> None:
        self.reuse, self.scope = reuse, scope
        self.touched = False
        self._start = start
        self._blocks: Iterator[StreamedBlock] = iter(())
        self._at: StreamedBlock | None = None
        self._closed = False

    @property
    def sees_dense(self) -> bool:
        """True if what is observed next is the dense model's."""
        return self.reuse.dense_inputs or not self.touched

    def at(self, index: int) -> StreamedBlock | None:
        """The stream's own block, if it stands there."""
        return self._at if self._at is not None and self._at.index == index else None

    def reach(self, index: int) -> StreamedBlock:
        """The stream's own block, after all before it have run as they are now."""
        assert not self._closed, "a dense block was changed before the stream had passed it"
        if self._at is None:
            self._blocks = self._start()
        while self._at is None or self._at.index < index:
            self._at = next(self._blocks)
        return self._at

    def leave(self, index: int, asked: Mapping[int, str]) -> None:
        """Before a block changes whose dense outputs count: move on behind it, unless all that will be asked is kept.

        Args:
            asked: the statistics that the block was asked for by the number of their input; empty for one that no
                store can keep.
        """
        later = [after for after in self.scope if after > index]
        needed = [(where, number, name) for where in later for number, name in asked.items()]
        if all(name and self.key(where, number, name) in self.reuse.store for where, number, name in needed):
            self._closed = self._closed or self._at is None or self._at.index <= index
        elif later:
            self.reach(later[0])

    def key(self, index: int, number: int, name: str) -> Hashable:
        """Of the statistic of the inputs of one group of linears of a dense block."""
        return ("statistic", self.reuse.cache_key, index, number, name)


class CachedBlock(_Unseen):
    """A block whose weights are at hand and whose stream runs only where a statistic is not kept."""

    def __init__(self, walk: _Walk, decoder: Decoder, index: int) -> None:
        super().__init__(decoder, index)
        self._walk = walk
        self._inputs = decoder.inputs(index)
        self._asked: dict[int, str] = {}
        self._seen: dict[Hashable, ActivationStats] = {}
        self._left = False

    def write(self, site: Site, weight: Tensor) -> None:
        """Put a new weight (O, I) in place."""
        walk = self._walk
        if walk.reuse.dense_inputs:
            if not self._left:
                walk.leave(self.index, self._asked)
                self._left = True
            super().write(site, weight)
        elif own := walk.at(self.index):
            own.write(site, weight)
        else:
            super().write(site, weight)
        walk.touched = True

    def observe(self, statistic: Statistic | Mapping[Site, Statistic]) -> dict[Site, ActivationStats]:
        """As a streamed block does; what is kept is not observed again."""
        walk = self._walk
        if not walk.sees_dense:
            return walk.reach(self.index).observe(statistic)
        wanted = statistic if isinstance(statistic, Mapping) else dict.fromkeys(self._linears, statistic)
        groups = {number: [site for site in group if site in wanted] for number, group in enumerate(self._inputs)}
        found: dict[Site, ActivationStats] = {}
        missing: dict[Site, Statistic] = {}
        for number, group in groups.items():
            if group:
                self._asked[number] = name_of(wanted[group[0]])
                kept = self._kept(number)
                if kept is None:
                    missing |= dict.fromkeys(group, wanted[group[0]])
                else:
                    found |= dict.fromkeys(group, kept)
        if missing:
            found |= walk.reach(self.index).observe(missing)
        for number, group in groups.items():
            if group and self._asked[number]:
                self._seen[walk.key(self.index, number, self._asked[number])] = found[group[0]]
        return {site: found[site] for group in groups.values() for site in group}

    def _kept(self, number: int) -> ActivationStats | None:
        """Statistics asked of this group's inputs, if they are kept."""
        reuse, name = self._walk.reuse, self._asked[number]
        return reuse.taken("statistics", reuse.store, self._walk.key(self.index, number, name)) if name else None

    def weight_statistic(self, site: Site, make: Callable[[], Any]) -> Any:
        """A method's statistic of a dense weight alone (the order of its magnitudes), made once."""
        key = ("weight", site, make)
        if (value := self._walk.reuse.taken("orders", self._walk.reuse.store, key)) is None:
            value = make()
            self._seen[key] = value
        return value

    def settle(self) -> None:
        """Leave what was seen to other points, with what was made of it (the factor of a Gram matrix)."""
        walk = self._walk
        everywhere = walk.reuse.dense_inputs or self.index == walk.scope[0]
        for key, value in self._seen.items():
            if everywhere or bytes_of(value) <= SMALL:
                walk.reuse.store.put(key, value)
        self._seen = {}


@dataclass(frozen=True)
class _Remembering:
    """A method that takes over what an earlier point decided: a `BlockMethod`."""

    inner: Any
    allocation: Allocation
    reuse: ReuseCache

    @property
    def behind(self) -> Any:
        """The method that decides."""
        return self.inner

    def prune_block(self, block: Any, patterns: Mapping[Site, Pattern]) -> Mapping[Site, Pruned]:
        taken = self.reuse.taken("blocks", self.reuse.paths, key := self._key(patterns))
        if taken is None:
            weights = block.weights
            pruned = {
                site: result._replace(weight=_own(result.weight, weights[site]))
                for site, result in as_block_method(self.inner).prune_block(block, patterns).items()
            }
            self.reuse.paths.put(key, (pruned, dict(block.diagnostics)))
            return pruned
        pruned, logged = taken
        block.log(**logged)
        return pruned

    def _key(self, patterns: Mapping[Site, Pattern]) -> Hashable:
        """The decisions so far; those of earlier blocks count unless every block sees dense inputs anyway."""
        here = list(patterns)
        sites = list(self.allocation)
        path = here if self.reuse.dense_inputs else sites[: max(map(sites.index, here)) + 1]
        decisions = [(site, repr(self.allocation[site])) for site in path]
        text = json.dumps([describe(self.inner), self.reuse.dense_inputs, decisions], sort_keys=True, default=str)
        return ("path", self.reuse.cache_key, hashlib.sha256(text.encode()).hexdigest())


def _own(pruned: Tensor, weight: Tensor) -> Tensor:
    """The pruned weight, which is not the model's own tensor: that one will be dense again."""
    return pruned.clone() if pruned.data_ptr() == weight.data_ptr() else pruned


def name_of(statistic: Statistic) -> str:
    """The name of a statistic: its two functions where a module holds them, empty for one made on the spot."""
    names = []
    for function in statistic:
        module, name = getattr(function, "__module__", ""), getattr(function, "__qualname__", "")
        if getattr(sys.modules.get(module), name, None) is not function:
            return ""
        names.append(f"{module}.{name}")
    return " ".join(names)


def digest(windows: Tensor | None, *settings: object) -> str:
    """The sha256 of calibration windows (N, L) and of whatever else the statistics depend on."""
    content = hashlib.sha256(repr(settings).encode())
    if windows is not None:
        content.update(repr(tuple(windows.shape)).encode() + windows.cpu().numpy().tobytes())
    return content.hexdigest()


def bytes_of(value: Any) -> int:
    """The bytes of all tensors in a value."""
    sizes: list[int] = []
    _mapped(value, lambda tensor: sizes.append(tensor.nbytes) or tensor)  # type: ignore[func-returns-value]
    return sum(sizes)


def _moved(value: Any, device: torch.device) -> Any:
    return _mapped(value, lambda tensor: tensor.to(device))


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A value of tuples, lists, dictionaries and dataclasses with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_mapped(item, change) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(_mapped(item, change) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        inside = {one.name: _mapped(getattr(value, one.name), change) for one in dataclasses.fields(value) if one.init}
        return dataclasses.replace(value, **inside)
    return value
