"""Structural decisions as data: which blocks go. Applying one is the business of `models/surgery.py`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Edit:
    """Blocks (by index) to leave out; the empty edit changes nothing."""

    dropped_blocks: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.dropped_blocks)
