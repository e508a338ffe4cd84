"""Tensors that wait in host memory, and the copies that bring them to a device and back beside the computation."""

from __future__ import annotations

import math
import mmap
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

GIB = 2**30
ROOM = 0.25
"""The share of a GPU's memory that waiting tensors leave free."""
AHEAD = 2
"""Tensors of one list that are computed or copied at a time; the host waits for a GPU that is further behind, or the
tensors in flight would fill the memory that they were to leave free."""

Mark = torch.cuda.Event | None
"""A point in a GPU's work that other work can wait for; None is one that has passed, as all have on a CPU."""


class CopyStreams:
    """Copies to a device and from it in two queues of its own, each after what it has to wait for.

    On a CPU a copy is done when the call returns, and nothing waits.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._there = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._back = torch.cuda.Stream(device) if device.type == "cuda" else None

    def mark(self) -> Mark:
        """Now, in the computation."""
        return torch.cuda.current_stream(self.device).record_event() if self._there else None

    def wait(self, mark: Mark) -> None:
        """Let the computation go on only behind a mark; the host does not wait."""
        if mark is not None:
            torch.cuda.current_stream(self.device).wait_event(mark)

    def fetch(self, pairs: Iterable[tuple[Tensor, Tensor]], after: Sequence[Mark]) -> Mark:
        """Copy each (from, to) to the device."""
        return _copy(self._there, pairs, after)

    def send(self, pairs: Iterable[tuple[Tensor, Tensor]], after: Sequence[Mark]) -> Mark:
        """Copy each (from, to) from the device."""
        return _copy(self._back, pairs, after)

    def fetched(self, host: Tensor, after: Sequence[Mark]) -> tuple[Tensor, Mark]:
        """A new tensor on the device, and the mark behind which it is there."""
        with _queue(self._there):
            tensor = torch.empty_like(host, device=self.device)
        return tensor, self.fetch([(host, tensor)], after)

    def arrived(self, tensor: Tensor, mark: Mark) -> Tensor:
        """Fetched tensor, for the computation."""
        self.wait(mark)
        if self._there:
            tensor.record_stream(torch.cuda.current_stream(self.device))
        return tensor

    def record_use(self, tensor: Tensor) -> None:
        """A tensor of the computation's is used by the copies: its memory is not given away before they are done."""
        for queue in filter(None, (self._there, self._back)):
            tensor.record_stream(queue)

    def finish(self) -> None:
        """Wait until what was sent is in host memory, for the host to read."""
        if self._back:
            self._back.synchronize()


def _queue(stream: torch.cuda.Stream | None) -> AbstractContextManager[object]:
    return torch.cuda.stream(stream) if stream else nullcontext()


def _copy(stream: torch.cuda.Stream | None, pairs: Iterable[tuple[Tensor, Tensor]], after: Sequence[Mark]) -> Mark:
    with _queue(stream):
        for mark in filter(None, after):
            assert stream is not None
            stream.wait_event(mark)
        for source, target in pairs:
            target.copy_(source, non_blocking=True)
        return stream.record_event() if stream else None


@lru_cache(maxsize=16)
def _copy_streams(device: torch.device) -> CopyStreams:
    """The one of all lists of a device."""
    return CopyStreams(device)


class OffloadableTensors:
    """A list of tensors that are needed again and again, in order, on the device where they were made.

    Args:
        on_host: in host memory or not; None: in host memory once the device has no room.
    """

    def __init__(self, device: torch.device, tensors: Iterable[Tensor] = (), *, on_host: bool | None = None) -> None:
        self.device, self._always = device, on_host
        self._tensors: list[Tensor] = []
        self._offloaded: dict[int, Mark] = {}  # those in host memory, and when what was sent last is there
        self._sent: deque[Mark] = deque()
        for tensor in tensors:
            self.append(tensor)

    def append(self, tensor: Tensor) -> OffloadableTensors:
        """Keep one more; it is not copied unless it goes to host memory."""
        on_host = not self._has_room() if self._always is None else self._always
        self._tensors.append(tensor)
        if on_host:
            self._send(len(self) - 1, tensor, _empty_on_host(tensor))
        return self

    def __setitem__(self, index: int, tensor: Tensor) -> None:
        """Replace one where it waits."""
        if index not in self._offloaded:
            self._tensors[index] = tensor
        else:
            here = self._tensors[index]
            self._send(index, tensor, here if here.shape == tensor.shape else _empty_on_host(tensor))

    def __getitem__(self, index: int) -> Tensor:
        if index not in self._offloaded:
            return self._tensors[index]
        copies = _copy_streams(self.device)
        copies.wait(self._offloaded[index])
        return torch.empty_like(self._tensors[index], device=self.device).copy_(self._tensors[index], non_blocking=True)

    def __len__(self) -> int:
        return len(self._tensors)

    def __iter__(self) -> Iterator[Tensor]:
        """One after the other, the next one on its way meanwhile; it may not be replaced before its turn."""
        used: deque[Mark] = deque()
        ahead = self._fetch(0)
        for index in range(len(self)):
            tensor, ahead = self._arrived(index, ahead), self._fetch(index + 1)
            yield tensor
            del tensor
            if ahead:
                _limit(used, _copy_streams(self.device).mark())

    @property
    def elements(self) -> int:
        """The number of elements of all tensors, none of which is moved for it."""
        return sum(tensor.numel() for tensor in self._tensors)

    @property
    def waiting(self) -> int:
        """How many of them wait in host memory."""
        return len(self._offloaded)

    def _send(self, index: int, tensor: Tensor, host: Tensor) -> None:
        copies = _copy_streams(self.device)
        mark = copies.send([(tensor, host)], [copies.mark()])
        copies.record_use(tensor)
        self._tensors[index], self._offloaded[index] = host, mark
        _limit(self._sent, mark)

    def _fetch(self, index: int) -> tuple[Tensor, Mark] | None:
        if index not in self._offloaded:
            return None
        return _copy_streams(self.device).fetched(self._tensors[index], [self._offloaded[index]])

    def _arrived(self, index: int, fetched: tuple[Tensor, Mark] | None) -> Tensor:
        return _copy_streams(self.device).arrived(*fetched) if fetched else self._tensors[index]

    def _has_room(self) -> bool:
        if self.device.type != "cuda":
            return True
        return free_on_gpu(self.device) > ROOM * torch.cuda.mem_get_info(self.device)[1]


def free_on_gpu(device: torch.device) -> int:
    """Bytes that are free on a GPU, those included that this process has from it and does not use."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def joined(parts: Sequence[OffloadableTensors]) -> OffloadableTensors:
    """The tensors of several lists as one list on the device of the first."""
    first, *others = parts
    for part in others:
        for tensor in part:
            first.append(tensor.to(first.device))
    return first


def _limit(marks: deque[Mark], mark: Mark) -> None:
    marks.append(mark)
    if len(marks) > AHEAD and (oldest := marks.popleft()) is not None:
        oldest.synchronize()


def _empty_on_host(tensor: Tensor) -> Tensor:
    """Page-locked where there is a GPU; torch keeps such memory for the next list, in powers of two."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=torch.cuda.is_available())


def page_locked(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Host memory that a GPU copies without a detour, of this size and no more; locking takes about 1 s per GiB.

    Where the system refuses to lock it the memory is an ordinary one: copies wait for the host then. Whoever asked
    gives it to `unlock` when it is no longer needed.
    """
    page = mmap.PAGESIZE
    size = -(-max(1, math.prod(shape) * dtype.itemsize) // page) * page
    raw = torch.empty(size + page, dtype=torch.uint8)
    start = -raw.data_ptr() % page  # pages of its own: one cannot be locked twice
    if torch.cuda.is_available():
        _forgiven(torch.cuda.cudart().cudaHostRegister(raw.data_ptr() + start, size, 0))
    return raw[start : start + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)


def unlock(addresses: Iterable[int]) -> None:
    """Give back what `page_locked` locked, before the memory is freed."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        for address in addresses:
            _forgiven(torch.cuda.cudart().cudaHostUnregister(address))


def _forgiven(status: Any) -> None:
    """A call that the system may refuse: the next one would be told of it."""
    if int(status):
        with suppress(RuntimeError):
            torch.zeros(1, device="cuda")
