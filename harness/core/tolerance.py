"""How exactly a sparsity has to be met."""

from __future__ import annotations

TOLERANCE = 0.0005
"""The gap between achieved and asked sparsity that goes unreported, in fractions of zeros."""
