"""Seconds of the named functions of a run, without those of the named ones inside them, by the GPU's clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch

from benchmarks.speed.common import synchronise

Seconds = dict[str, float]
"""By the name of a step."""


class _Clock:
    """Marks in the GPU's queue, or moments where there is none; nothing is waited for until the end."""

    def __init__(self) -> None:
        self.marks: list[tuple[str | None, Any]] = []
        self.open: list[str | None] = [None]

    def enter(self, name: str) -> None:
        """Begin a step."""
        self.open.append(name)
        self.mark()

    def leave(self) -> None:
        """Go on with the step around it."""
        self.open.pop()
        self.mark()

    def mark(self) -> None:
        """From now on it is the innermost open step's time."""
        if torch.cuda.is_available():
            event: Any = torch.cuda.Event(enable_timing=True)
            event.record()
        else:
            event = time.perf_counter()
        self.marks.append((self.open[-1], event))

    def seconds(self) -> Seconds:
        """Sums by step; the rest is under `other`."""
        synchronise()
        total: Seconds = {}
        for (name, start), (_, end) in zip(self.marks, self.marks[1:], strict=False):
            taken = end - start if isinstance(start, float) else start.elapsed_time(end) / 1000
            total[name or "other"] = total.get(name or "other", 0.0) + taken
        return total


@contextmanager
def stepwise(functions: Mapping[str, list[tuple[Any, str]]]) -> Iterator[Seconds]:
    """Time functions, each an owner and its attribute, while inside; the seconds are there at the end."""
    clock, seconds = _Clock(), Seconds()
    before = [(owner, name, getattr(owner, name)) for places in functions.values() for owner, name in places]
    try:
        for step, places in functions.items():
            for owner, name in places:
                setattr(owner, name, _timed(clock, step, getattr(owner, name)))
        clock.mark()
        yield seconds
        clock.mark()
        seconds |= clock.seconds()
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)


def _timed(clock: _Clock, step: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        clock.enter(step)
        try:
            return function(*given, **named)
        finally:
            clock.leave()

    return call
