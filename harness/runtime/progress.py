"""Progress bars for the stages that take long, silent where nobody watches."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
SAID_AFTER, WORTH_SAYING = 10.0, 30.0
"""Seconds after which the pace of a training is told, and what has to be left then for it to be worth a line."""


def progress(items: Iterable[T], label: str) -> Iterable[T]:
    """`items` with a bar on standard error if that is a terminal; short stages leave no trace."""
    return tqdm(items, desc=label, disable=not sys.stderr.isatty(), leave=False, delay=1)


def training_steps(steps: range, label: str, tokens: int) -> Iterator[int]:
    """Steps of a training with a bar in tokens; where nobody watches, one line says the pace and what is left.

    Args:
        tokens: of a step.
    """
    watched = sys.stderr.isatty()
    bar = tqdm(steps, label, disable=not watched, leave=False, delay=1, unit=" tokens", unit_scale=float(tokens))
    began, said = time.monotonic(), watched
    for done, step in enumerate(bar):
        spent = time.monotonic() - began
        if not said and done and spent >= SAID_AFTER:
            left, said = spent / done * (len(steps) - done), True
            if left >= WORTH_SAYING:
                pace = f"{done * tokens / spent:,.0f} tokens a second"
                print(
                    f"{label}: {pace}, about {left / 60:.1f} min left of this learning rate",
                    file=sys.stderr,
                    flush=True,
                )
        yield step
