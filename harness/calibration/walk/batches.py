"""Batch sizes: how many tokens run at once in calibration, in a search and in perplexity, and what they are cut by."""

from __future__ import annotations

from torch import Tensor

CPU_TOKENS_PER_BATCH = 1024
"""Four times as many take half as long again on two cores: their tensors come from the system anew each time."""
TOKENS_PER_BATCH = 4096
"""Enough for a GPU in float32."""
SHORT_TOKENS_PER_BATCH = 16384
"""Fills a GPU in 16 bits."""


def batched(windows: Tensor, tokens: int = TOKENS_PER_BATCH) -> list[Tensor]:
    """Windows (N, L) in batches of about so many tokens."""
    return list(windows.split(max(1, tokens // windows.shape[1])))


CANDIDATE_TOKENS = {"cpu": 4096, "cuda": 16384}
"""Tokens of all candidates that a block runs over at once."""


LOGIT_BYTES = 1 << 29
"""Logits that are there at once, in float32, take at most so much memory, but for those of a single window."""


def calibration_tokens(itemsize: int, cuda: bool, *, exact: bool) -> int:
    """Tokens of a batch of calibration, at least a window's.

    Args:
        itemsize: bytes of a weight.
        exact: every window goes alone, as in the released codes.
    """
    if exact:
        return 1
    if not cuda:
        return CPU_TOKENS_PER_BATCH
    return SHORT_TOKENS_PER_BATCH if itemsize == 2 else TOKENS_PER_BATCH


def evaluation_tokens(itemsize: int, cuda: bool) -> int:
    """Tokens of a batch of evaluation, at least a window's. On a CPU twice as many were a third slower."""
    return SHORT_TOKENS_PER_BATCH if cuda and itemsize == 2 else TOKENS_PER_BATCH


def windows_of_logits(length: int, vocabulary: int) -> int:
    """Windows of so many tokens that go through the head at once."""
    return max(1, LOGIT_BYTES // (4 * length * vocabulary))
