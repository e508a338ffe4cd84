"""Standard streams that cost no point: what cannot be printed is dropped, and the exit status does not say so.

A job of cron or `ssh … >&- 2>&- &` has no streams, a disk that holds a log may be full, `| head` has seen enough, an
ASCII terminal knows no `±`. Numbers are in the records; runs go on. Nor does text of others turn into commands for a
terminal.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from harness.runtime import escape

ERRORS = "harness"
"""The name under which `_instead` is known to codecs."""


class _Sink(io.FileIO):
    """A descriptor that takes everything: from the first write that fails on it leads to nowhere."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # libraries below Python, and processes started here, write there too
            os.close(nowhere)
            return memoryview(data).nbytes


def secure() -> None:
    """Put streams that cannot fail in the place of this process's own; descriptors that were closed lead to nowhere.

    A closed descriptor would be given to the next file opened, a record say, and be written to by whoever reports an
    error. Streams that something else has put there (a notebook, a test) stay.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free: this one
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    if _is_own(sys.stdout, 1):
        sys.stdout = sys.__stdout__ = _stream(1, sys.stdout)  # type: ignore[misc]
    if _is_own(sys.stderr, 2):
        sys.stderr = sys.__stderr__ = _stream(2, sys.stderr)  # type: ignore[misc]


def _is_own(stream: Any, descriptor: int) -> bool:
    return stream is None or (type(stream) is io.TextIOWrapper and stream.fileno() == descriptor)


def _stream(descriptor: int, before: TextIO | None) -> io.TextIOWrapper:
    buffer = io.BufferedWriter(_Sink(descriptor, "w", closefd=False))
    encoding = before.encoding if before else "utf-8"
    return io.TextIOWrapper(
        buffer, encoding, errors="backslashreplace", line_buffering=descriptor == 2 or os.isatty(descriptor)
    )


@contextmanager
def plain() -> Iterator[None]:
    """Inside, standard output and standard error take any text: what their encoding lacks is written otherwise, and
    terminal sequences are left out (carriage returns stay on standard error, for progress bars)."""
    codecs.register_error(ERRORS, _instead)
    before = sys.stdout, sys.stderr
    for stream in {sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__} - {None}:
        with suppress(AttributeError, ValueError, OSError):  # closed, or no text stream of Python's own
            stream.reconfigure(errors=ERRORS)  # type: ignore[union-attr]
    if sys.stdout is not None:
        sys.stdout = _Plain(sys.stdout)
    if sys.stderr is not None:
        sys.stderr = _Plain(sys.stderr, returns="\r")
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class _Plain:
    """A stream that leaves out what a terminal would obey."""

    def __init__(self, stream: TextIO, returns: str = "") -> None:
        self._stream, self._returns = stream, returns

    def write(self, text: str) -> int:
        if self._returns:
            self._stream.write(self._returns.join(map(escape.terminal, text.split(self._returns))))
        else:
            self._stream.write(escape.terminal(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for text in lines:
            self.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _instead(error: UnicodeError) -> tuple[str, int]:
    """For codecs: what stands for characters that the encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(escape.INSTEAD.get(character, "?") for character in lacking), error.end
