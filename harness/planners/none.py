"""The planner that changes nothing."""

from __future__ import annotations

from dataclasses import dataclass

from harness.catalogue import component
from harness.core.edit import Edit
from harness.core.interfaces import Probe


@component("planner", "none")
@dataclass(frozen=True)
class NoPlan:
    """All structures stay."""

    def plan(self, probe: Probe) -> Edit:
        return Edit()
