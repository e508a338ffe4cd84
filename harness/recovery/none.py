"""The recovery that changes nothing."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from harness.catalogue import component


@component("recovery", "none")
@dataclass(frozen=True)
class NoRecovery:
    """The pruned model stays as it is."""

    def heal(self, model: nn.Module, tokenizer: Any, kept: Mapping[str, Tensor], generator: random.Random) -> None:
        """Leaves `model` alone."""
