"""The recovery that changes nothing."""

from __future__ import annotations

from dataclasses import dataclass

from harness.catalogue import component
from harness.core.recoveries import RecoveryView


@component("recovery", "none")
@dataclass(frozen=True)
class NoRecovery:
    """The pruned model stays as it is."""

    def heal(self, view: RecoveryView) -> None:
        """Leaves the model alone."""
