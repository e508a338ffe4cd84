"""How exactly a sparsity has to be met."""

from __future__ import annotations

TOLERANCE = 0.0005
"""What achieved and asked sparsity may differ by, in fractions of zeros, without a word."""
