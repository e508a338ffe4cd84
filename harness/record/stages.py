"""Seconds and peak memory of each stage of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from harness.runtime.peak import peak_bytes, reset_peak


class Stages:
    """Collects name → seconds, peak bytes: of the GPU's allocator, or of the resident memory on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.finished: dict[str, dict[str, float]] = {}

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Measure what runs inside; a stage that fails is not recorded."""
        reset_peak(self._device)
        start = time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        seconds = round(time.perf_counter() - start, 3)
        self.finished[name] = {"seconds": seconds, "peak_bytes": peak_bytes(self._device)}

    def move(self, seconds: float, stage: str, to: str) -> None:
        """Count seconds of a finished stage as those of another, of its own."""
        self.finished[stage]["seconds"] = round(self.finished[stage]["seconds"] - seconds, 3)
        self.finished[to] = {"seconds": round(seconds, 3), "peak_bytes": self.finished[stage]["peak_bytes"]}
