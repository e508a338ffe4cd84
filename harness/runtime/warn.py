"""Events of a run that a reader of its numbers should know: said at once, and kept for the record."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from harness.runtime.escape import line

_heard: ContextVar[list[str] | None] = ContextVar("heard", default=None)


def warn(text: str) -> None:
    """Say something on standard error (of the process: libraries are kept quiet), and to a collector, each once."""
    text = line(text)
    heard = _heard.get()
    if heard is not None:
        if text in heard:
            return
        heard.append(text)
    print(f"note: {text}", file=sys.__stderr__ or sys.stderr, flush=True)


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Collects what is warned of inside."""
    heard: list[str] = []
    token = _heard.set(heard)
    try:
        yield heard
    finally:
        _heard.reset(token)
