"""Mistakes of a user, said in one sentence that tells what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A user's mistake: printed as its one sentence, exit status 2, no traceback and no record."""


class Refusal(UserError):
    """A component cannot do this point: exit 2 in a single run, a `skipped` record inside a sweep."""


class Failure(Exception):
    """A stop that is nobody's mistake (memory, a damaged file), as the one sentence of a run's failed record."""


def unknown(what: str, name: object, options: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the nearest names that do."""
    known = sorted(options)
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}." if known else "it has none."
    return UserError(f"unknown {what} '{name}'; {hint}")


LONGEST_REASON = 400
"""Characters of another program's message that a sentence takes over."""


def reason(error: BaseException) -> str:
    """Another library's text of an error, all of it in one line: its first line alone is often but a title."""
    text = " ".join(str(error).split())
    text = text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 1] + "…"
    return f"{type(error).__name__}: {text.rstrip('.')}" if text else type(error).__name__
