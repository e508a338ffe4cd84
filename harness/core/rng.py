"""Random draws by purpose, so that a new draw in one stage does not move another."""

from __future__ import annotations

import hashlib
import random


def rng(seed: int, purpose: str) -> random.Random:
    """A generator of its own for (seed, purpose)."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))
