"""Asking the hub: said at once, waited for within bounds, and what is on this machine where it does not answer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

PATIENCE = 10.0
"""Seconds within which a server has to take a connection, and as many within which it has to answer."""


@contextmanager
def asking(what: str) -> Iterator[None]:
    """Say on standard error what the hub is asked for; one that does not answer is not asked again inside.

    Its libraries look at what is on this machine then, instead of trying again for minutes. Whoever uses `datasets`
    inside imports it before.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        yield
        return
    print(f"asking the hub for {what} …", file=sys.__stderr__ or sys.stderr, flush=True)
    if answers(constants.ENDPOINT):
        yield
        return
    libraries = [constants, *([sys.modules["datasets"].config] if "datasets" in sys.modules else [])]
    before = [library.HF_HUB_OFFLINE for library in libraries]
    try:
        for library in libraries:
            library.HF_HUB_OFFLINE = True
        yield
    finally:
        for library, value in zip(libraries, before, strict=True):
            library.HF_HUB_OFFLINE = value


@lru_cache(maxsize=8)
def answers(endpoint: str) -> bool:
    """Return whether a server answers at all, with whatever status; asked once a process."""
    from huggingface_hub.utils import get_session

    try:
        get_session().head(endpoint, timeout=PATIENCE)
    except Exception:  # each version of the library has its own kinds
        return False
    return True


def why_nothing(error: Exception) -> str:
    """Why the hub gave nothing, in a few words for a sentence."""
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE and not answers(constants.ENDPOINT):
        return f"{constants.ENDPOINT} does not answer"
    return type(error).__name__
