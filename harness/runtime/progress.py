"""Progress bars for the stages that take long, silent where nobody watches."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(items: Iterable[T], label: str) -> Iterable[T]:
    """`items` with a bar on standard error if that is a terminal; short stages leave no trace."""
    return tqdm(items, desc=label, disable=not sys.stderr.isatty(), leave=False, delay=1)
