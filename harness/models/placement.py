"""Where a loaded model lies: on its device, or with its blocks in host memory; and its replicas on further devices.

Blocks in host memory visit the device, two at a time: one computes while the next one is on its way. Whoever runs a
block brings it there, so that nothing else has to know; whoever also looks at its weights, or runs it several times,
does so inside `on_device`. Outside, the matrices of a block are the ones in host memory.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from harness.models.decoder import Decoder
from harness.runtime.memory import CopyStreams, Mark, OffloadableTensors, page_locked, unlock

ALIGNMENT = 512
"""Bytes at whose multiples matrices start in a buffer, as the GPU's own allocator has it."""


@dataclass(frozen=True)
class Where:
    """Where the parts of a model are to be."""

    device: torch.device
    offload: bool = False
    """True if blocks and activations wait in host memory."""
    parks: bool | None = None
    """True if activations alone do; None: once there is no room for them."""
    others: Sequence[torch.device] = ()
    """Further devices that take a share of the windows."""


class Placement:
    """Where the parts of one model are."""

    def __init__(self, decoder: Decoder, where: Where) -> None:
        self.device, self.others = where.device, tuple(where.others)
        self._blocks, self._parks = decoder.modules, True if where.offload else where.parks
        self._visits: _Visits | _Follows | None = _Visits(self._blocks, where.device) if where.offload else None
        self._replicas: list[Decoder] = []

    @property
    def offloaded(self) -> bool:
        """True if blocks wait in host memory."""
        return self._visits is not None

    @contextmanager
    def on_device(self, block: nn.Module) -> Iterator[None]:
        """The matrices of a block are on the device inside; what `wrote` was told of goes back at the end."""
        with _visiting(self._visits, block):
            yield

    def wrote(self, block: nn.Module) -> None:
        """The weights of a block that is on the device were changed."""
        if self._visits:
            self._visits.wrote(block)

    def settle(self) -> None:
        """Host memory is up to date and the device holds no copy of it: it may be read and written."""
        if self._visits:
            self._visits.settle()

    def restructured(self) -> None:
        """The blocks have other matrices, or are fewer: those in host memory find their places anew."""
        self._replicas = []
        if isinstance(self._visits, _Visits):
            self._visits.restructured()

    def offloadable(self, tensors: Any = ()) -> OffloadableTensors:
        """A list of activations, which wait where this placement has them wait."""
        return OffloadableTensors(self.device, tensors, on_host=self._parks)

    def replicas(self, decoder: Decoder, most: int) -> list[Decoder]:
        """At most so many copies of this placement's model, one on each further device; they follow its weights."""
        wanted = self.others[: max(0, most)]
        if any(len(replica.modules) != len(self._blocks) for replica in self._replicas):
            self._replicas = []
        for device in wanted[len(self._replicas) :]:
            self._replicas.append(_replica(decoder, device, self._parks))
        return self._replicas[: len(wanted)]

    def outdated(self) -> None:
        """More than the matrices of blocks has changed, which is all that replicas follow: they are made anew."""
        self._replicas = []


_PLACED: weakref.WeakKeyDictionary[nn.Module, Placement] = weakref.WeakKeyDictionary()


def placement_of(decoder: Decoder) -> Placement:
    """Where a model was placed; one that nobody placed is where its parameters are."""
    model = decoder.model
    return _PLACED.get(model) or Placement(decoder, Where(next(model.parameters()).device))


def place(decoder: Decoder, where: Where) -> Placement:
    """Bring a model from host memory to its place: all of it to the device, or all but the matrices of its blocks.

    These move to page-locked memory, one after the other, so that the model is never there twice.
    """
    model = decoder.model
    if where.offload:
        inside = {id(parameter) for parameter in decoder.modules.parameters()}
        for parameter in model.parameters():
            if id(parameter) not in inside:
                parameter.data = parameter.data.to(where.device)
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(where.device))
    else:
        model.to(where.device)  # type: ignore[arg-type]
    _PLACED[model] = placed = Placement(decoder, where)
    return placed


class WeightsOnDevice(Mapping[str, Tensor]):
    """Site → weight (O, I) on the device of the model, brought there when it is asked for."""

    def __init__(self, linears: Mapping[str, nn.Linear], placement: Placement) -> None:
        self._linears, self._placement = linears, placement

    def __getitem__(self, site: str) -> Tensor:
        weight = self._linears[site].weight.data
        if weight.device != self._placement.device:
            self._placement.settle()
        return weight.to(self._placement.device)

    def __iter__(self) -> Iterator[str]:
        return iter(self._linears)

    def __len__(self) -> int:
        return len(self._linears)


class _Home:
    """The matrices of one block and where they wait; its vectors are small and stay on the device."""

    def __init__(self, block: nn.Module, device: torch.device) -> None:
        self.matrices = [parameter for parameter in block.parameters() if parameter.dim() > 1]
        self.waiting: list[Tensor] = []
        self.settled: Mark = None
        self.size = _size(self.matrices)
        for parameter in block.parameters():
            if parameter.dim() > 1:
                host = page_locked(parameter.shape, parameter.dtype).copy_(parameter.data)
                parameter.data = host
                self.waiting.append(host)
            else:
                parameter.data = parameter.data.to(device)

    @property
    def pointers(self) -> list[int]:
        """The addresses of the memory in which the matrices wait."""
        return [tensor.data_ptr() for tensor in self.waiting]

    def holds(self, block: nn.Module) -> bool:
        """Return whether the matrices of the block are those that wait here."""
        now = [parameter for parameter in block.parameters() if parameter.dim() > 1]
        return len(now) == len(self.waiting) and all(
            mine.data_ptr() == waits.data_ptr() and mine.shape == waits.shape
            for mine, waits in zip(now, self.waiting, strict=True)
        )


class _Slot:
    """Room for one block on the device: which one is there or on its way, from when on, and until when it is read."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.flat = torch.empty(size, dtype=torch.uint8, device=device)
        self.block: nn.Module | None = None
        self.ready: Mark = None
        self.free: Mark = None


class _Visits:
    """The blocks of a model in host memory, and two slots on the device that they visit."""

    def __init__(self, blocks: nn.ModuleList, device: torch.device) -> None:
        self._blocks, self._copy_streams = blocks, CopyStreams(device)
        self._homes = {block: _Home(block, device) for block in blocks}
        largest = max(home.size for home in self._homes.values())
        self._slots = [_Slot(largest, device), _Slot(largest, device)]
        for slot in self._slots:
            self._copy_streams.record_use(slot.flat)
        self._entered: list[nn.Module] = []
        self._written: set[nn.Module] = set()
        for block in blocks:
            _run_inside(block, self.visit)
        self._locked = [pointer for home in self._homes.values() for pointer in home.pointers]
        weakref.finalize(self, unlock, self._locked).atexit = False

    def restructured(self) -> None:
        """New homes for matrices that are others, or of another shape, than those that waited; none for blocks gone."""
        assert not self._entered, "blocks are cut while they wait"
        self.settle()
        left = set(self._blocks)
        for block, home in list(self._homes.items()):
            if block in left and home.holds(block):
                continue
            unlock(home.pointers)
            del self._homes[block]
            if block in left:
                self._homes[block] = _Home(block, self._copy_streams.device)
        self._locked[:] = [pointer for home in self._homes.values() for pointer in home.pointers]

    @contextmanager
    def visit(self, block: nn.Module) -> Iterator[None]:
        if block in self._entered:
            yield
            return
        slot, home = self._on_its_way(block), self._homes[block]
        self._entered.append(block)
        self._copy_streams.wait(slot.ready)
        on_device = _views(slot.flat, home.matrices)
        _point(home.matrices, on_device)
        self._fetch_next(block)
        try:
            yield
        finally:
            _point(home.matrices, home.waiting)
            slot.free = self._copy_streams.mark()
            if block in self._written:
                pairs = list(zip(on_device, home.waiting, strict=True))
                slot.free = home.settled = self._copy_streams.send(pairs, [slot.free])
                self._written.discard(block)
            slot.block = None
            self._entered.remove(block)

    def wrote(self, block: nn.Module) -> None:
        assert block in self._entered, "weights are written while their block is on the device"
        self._written.add(block)

    def settle(self) -> None:
        self._copy_streams.finish()
        for slot in self._slots:
            if slot.block not in self._entered:
                slot.block = None

    def _on_its_way(self, block: nn.Module) -> _Slot:
        """The slot of a block, to which it is copied unless it was already."""
        found = next((slot for slot in self._slots if slot.block is block), None)
        if found is None:
            free = [slot for slot in self._slots if slot.block not in self._entered]
            found = min(free, key=lambda slot: slot.block is not None)
            home = self._homes[block]
            pairs = list(zip(home.waiting, _views(found.flat, home.matrices), strict=True))
            found.ready = self._copy_streams.fetch(pairs, [found.free, home.settled])
            found.block = block
        return found

    def _fetch_next(self, block: nn.Module) -> None:
        order = list(self._blocks)  # a planner may have dropped some
        position = order.index(block) + 1
        if position < len(order) and len(self._entered) == 1:
            self._on_its_way(order[position])


class _Follows:
    """The blocks of a replica: one slot, to which the matrices are copied from where the model's own are now."""

    def __init__(self, blocks: nn.ModuleList, own: nn.ModuleList, device: torch.device) -> None:
        self._own = dict(zip(blocks, own, strict=True))
        self._matrices = {
            block: [mine for mine, its in zip(block.parameters(), owner.parameters(), strict=True) if its.dim() > 1]
            for block, owner in self._own.items()
        }
        self._slot = _Slot(max(_size(_matrices(block)) for block in own), device)
        self._empty = torch.empty(0, device=device)
        for block in blocks:
            _run_inside(block, self.visit)

    @contextmanager
    def visit(self, block: nn.Module) -> Iterator[None]:
        if self._slot.block is block:
            yield
            return
        assert self._slot.block is None, "a replica runs one block at a time"
        sources = _matrices(self._own[block])
        on_device = _views(self._slot.flat, sources)
        _point(self._matrices[block], on_device)
        self._slot.block = block
        self.wrote(block)
        try:
            yield
        finally:
            _point(self._matrices[block], [self._empty] * len(sources))
            self._slot.block = None

    def wrote(self, block: nn.Module) -> None:
        """The model's own weights have changed, or were never copied."""
        for matrix, source in zip(self._matrices[block], _matrices(self._own[block]), strict=True):
            matrix.data.copy_(source.data, non_blocking=True)

    def settle(self) -> None:
        """A replica keeps nothing."""


def _replica(decoder: Decoder, device: torch.device, parks: bool | None) -> Decoder:
    """The model on another device but for the matrices of its blocks; it shares the configuration."""
    model, own = decoder.model, decoder.modules
    inside = {id(matrix) for block in own for matrix in _matrices(block)}
    moved: dict[int, Any] = {id(model.config): model.config}
    moved |= {id(buffer): buffer.to(device, copy=True) for buffer in model.buffers()}
    for parameter in model.parameters():
        here = torch.empty(0, device=device) if id(parameter) in inside else parameter.detach().to(device, copy=True)
        moved[id(parameter)] = nn.Parameter(here, parameter.requires_grad)
    replica = replace(decoder, model=copy.deepcopy(model, moved))
    blocks = replica.modules
    for block in blocks:
        vars(block).pop("forward", None)  # the one that brings the model's own block to its device
    placed = Placement(replica, Where(device, parks=parks))
    placed._visits = _Follows(blocks, own, device)
    _PLACED[replica.model] = placed
    return replica


@contextmanager
def _visiting(visits: Any, block: nn.Module) -> Iterator[None]:
    if visits is None:
        yield
    else:
        with visits.visit(block):
            yield


def _run_inside(block: nn.Module, visit: Callable[[nn.Module], Any]) -> None:
    """Let a block bring itself to the device whenever it runs."""
    own = block.forward

    @wraps(own)
    def forward(*positional: Any, **named: Any) -> Any:
        with visit(block):
            return own(*positional, **named)

    block.forward = forward


def _matrices(block: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in block.parameters() if parameter.dim() > 1]


def _point(parameters: Sequence[nn.Parameter], tensors: Sequence[Tensor]) -> None:
    for parameter, tensor in zip(parameters, tensors, strict=True):
        parameter.data = tensor


def _size(matrices: Sequence[Tensor]) -> int:
    return sum(_aligned(matrix.nbytes) for matrix in matrices)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _views(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Pieces of a buffer of bytes in the shapes and dtypes of these matrices, one behind the other."""
    views, start = [], 0
    for matrix in like:
        views.append(flat[start : start + matrix.nbytes].view(matrix.dtype).view(matrix.shape))
        start += _aligned(matrix.nbytes)
    return views
