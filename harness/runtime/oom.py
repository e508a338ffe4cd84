"""Out of memory: the same work again in batches of half the size."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from harness.runtime.errors import Failure
from harness.runtime.warn import warn

T = TypeVar("T")
SHORT_OF_MEMORY = ("DefaultCPUAllocator", "STATUS_ALLOC_FAILED")
"""In what torch says where memory runs out for which it has no exception of its own: the host's, cuBLAS's, cuDNN's."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on whatever device."""
    said = isinstance(error, RuntimeError) and any(sign in str(error) for sign in SHORT_OF_MEMORY)
    return said or isinstance(error, torch.OutOfMemoryError | MemoryError)


def with_oom_backoff(work: Callable[[int], T], size: int, what: str) -> T:
    """`work(size)`, the size halved whenever memory runs out; every step is said and goes into the record.

    Raises:
        Failure: not even a batch of one fits.
    """
    while True:
        try:
            return work(size)
        except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
            if not is_out_of_memory(error):
                raise
            # only behind this block are the tensors of the failed attempt gone
        if size <= 1:
            raise Failure(
                f"{what} runs out of memory with a batch of one; take shorter windows (calibration.length, "
                "evaluation_window), a smaller dtype, or a device with more memory."
            )
        size //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        warn(f"batch of {what} halved to {size} after running out of memory")
