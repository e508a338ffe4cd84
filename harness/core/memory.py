"""Tensors that wait between passes: on the GPU while there is room, else in host memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

ROOM = 0.25
"""The share of a GPU's memory that waiting tensors leave free."""


class Parked:
    """A list of tensors that are needed again and again, in order, on the device where they were made."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._tensors: list[Tensor] = []

    def append(self, tensor: Tensor) -> Parked:
        """Keep one more; it is not copied unless it goes to host memory."""
        self._tensors.append(tensor if self._has_room() else _to_host(tensor))
        return self

    def __setitem__(self, index: int, tensor: Tensor) -> None:
        """Replace one where it waits."""
        here = self._tensors[index]
        if here.device == self.device:
            self._tensors[index] = tensor
        else:
            here.copy_(tensor, non_blocking=True)

    def __getitem__(self, index: int) -> Tensor:
        return self._tensors[index].to(self.device, non_blocking=True)

    def __len__(self) -> int:
        return len(self._tensors)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self)))

    @property
    def elements(self) -> int:
        """The number of elements of all tensors, none of which is moved for it."""
        return sum(tensor.numel() for tensor in self._tensors)

    def _has_room(self) -> bool:
        if self.device.type != "cuda":
            return True
        free, total = torch.cuda.mem_get_info(self.device)
        held = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return free + held > ROOM * total


def _to_host(tensor: Tensor) -> Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=torch.cuda.is_available())
    return host.copy_(tensor)
