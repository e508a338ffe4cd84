"""A method from outside the repository, as a user would write it."""

from dataclasses import dataclass

import torch

from harness.catalogue import component
from harness.core.interfaces import Pruned
from harness.core.pattern import keep


@component("method", "keep-left")
@dataclass(frozen=True)
class KeepLeft:
    """Keeps the first weights of every row."""

    statistic = None

    def prune(self, weight, seen, pattern):
        score = torch.arange(weight.shape[1], 0, -1).expand(weight.shape).float()
        kept = keep(score, pattern)
        return Pruned(weight * kept, kept)
