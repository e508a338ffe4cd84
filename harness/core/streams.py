"""Standard streams that can be printed to: no character fails, and no text of others turns into commands."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from harness.core import escape

ERRORS = "harness"
"""The name under which `_instead` is known to codecs."""


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
