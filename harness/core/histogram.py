"""The order of a matrix's magnitudes, found once for any number of thresholds.

Shapes: O outputs, I inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CLASSES = 1 << 15
"""Of magnitudes by the upper 15 bits behind their sign: of a 16-bit number all there are."""


@dataclass
class MagnitudeHistogram:
    """How many magnitudes of one matrix lie in each class or below it: 128 KiB, whatever the size of the matrix.

    The bits of numbers without a sign are ordered as the numbers are, so classes are counted, not sorted.
    """

    up_to: Tensor | None = None
    """For each class (CLASSES,), once a threshold was asked for."""

    def smallest(self, magnitudes: Tensor, rank: int) -> Tensor:
        """The magnitude (1, 1) of this rank, counted from one; `magnitudes` (O, I) are the same at every call.

        Exactly the value that sorting them gives: a class of 16-bit numbers is one number, one of float32 is sorted.
        """
        flat = magnitudes.reshape(-1)
        short = magnitudes.element_size() == 2
        bits = flat.view(torch.int16 if short else torch.int32)
        classes = bits if short else bits >> 16
        if self.up_to is None:
            self.up_to = torch.bincount(classes, minlength=CLASSES).cumsum(0).to(torch.int32)
        wanted = torch.searchsorted(self.up_to, torch.tensor([rank], dtype=torch.int32, device=flat.device))
        if short:
            return wanted.to(torch.int16).view(magnitudes.dtype).reshape(1, 1)
        below = int(self.up_to[wanted - 1]) if int(wanted) else 0
        inside = flat[classes == wanted.to(torch.int32)].sort().values
        return inside[rank - below - 1].reshape(1, 1)
