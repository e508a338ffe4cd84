"""The machine: the device that is asked for, the GPUs that may help it, and what memory is free."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol
from weakref import WeakSet

import torch

from harness.runtime.errors import UserError
from harness.runtime.memory import free_on_gpu


def resolve_device(wanted: str) -> torch.device:
    """`auto` is the GPU where there is one.

    Raises:
        UserError: not a device, or one this machine lacks.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise UserError(f"device={wanted} is none of auto, cpu, cuda, cuda:<number>.") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device={wanted} is none of auto, cpu, cuda, cuda:<number>.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        known = "cpu" if not count else f"cpu, cuda:0{'' if count == 1 else f' … cuda:{count - 1}'}"
        raise UserError(f"device={wanted} is not there: this machine has {count} GPUs; take one of auto, {known}.")
    return device


FREE = 0.9
"""A GPU with so much of its memory free is used by nobody."""


def other_gpus(wanted: str, device: torch.device) -> list[torch.device]:
    """The GPUs that may help `device`: all others that nobody uses where the choice was left open, else none."""
    if wanted != "auto" or device.type != "cuda":
        return []
    others = [index for index in range(torch.cuda.device_count()) if index != (device.index or 0)]
    free = {index: torch.cuda.mem_get_info(index) for index in others}
    return [torch.device("cuda", index) for index, (here, total) in free.items() if here > FREE * total]


def available(device: torch.device) -> int:
    """Bytes that a run can have on a device."""
    return free_on_gpu(device) if device.type == "cuda" else free_memory()


class Reclaimable(Protocol):
    """A holder of tensors between runs that gives them up for one that needs their memory."""

    def reclaimable(self, device: torch.device) -> int: ...


_holders: WeakSet[Reclaimable] = WeakSet()


def register_reclaimable(holder: Reclaimable) -> None:
    """Let the memory that somebody keeps count as free."""
    _holders.add(holder)


def reclaimable_on(device: torch.device) -> int:
    """Bytes on a device that whoever keeps them would give up."""
    return sum(holder.reclaimable(device) for holder in _holders)


def free_memory() -> int:
    """Bytes of main memory that are free to this process, with a container's limit respected."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    info = Path("/proc/meminfo")
    if info.is_file():
        fields = dict(line.split(":", 1) for line in info.read_text(encoding="utf-8").splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and limit.read_text(encoding="utf-8").strip() != "max":
        free = min(free, int(limit.read_text(encoding="utf-8")) - int(used.read_text(encoding="utf-8")))
    return free
