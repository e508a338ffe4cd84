"""Seconds and peak memory of each stage of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Stages:
    """Collects name → seconds, peak bytes: of the GPU's allocator, or of the resident memory on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.finished: dict[str, dict[str, float]] = {}

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Measure what runs inside; a stage that fails is not recorded."""
        self._reset_peak()
        start = time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.finished[name] = {"seconds": round(time.perf_counter() - start, 3), "peak_bytes": self._peak()}

    def move(self, seconds: float, stage: str, to: str) -> None:
        """Count seconds of a finished stage as those of another, of its own."""
        self.finished[stage]["seconds"] = round(self.finished[stage]["seconds"] - seconds, 3)
        self.finished[to] = {"seconds": round(seconds, 3), "peak_bytes": self.finished[stage]["peak_bytes"]}

    def _reset_peak(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            try:
                _RESET.write_text("5", encoding="utf-8")
            except OSError:
                pass  # then the peak is that of the process so far

    def _peak(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        if _STATUS.is_file():
            fields = dict(
                line.split(":", 1) for line in _STATUS.read_text(encoding="utf-8").splitlines() if ":" in line
            )
            return int(fields["VmHWM"].split()[0]) * 1024
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
