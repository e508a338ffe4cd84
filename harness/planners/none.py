"""The planner that changes nothing."""

from __future__ import annotations

from dataclasses import dataclass

from harness.catalogue import component
from harness.core.interfaces import StructureView
from harness.core.structure import Plan


@component("planner", "none")
@dataclass(frozen=True)
class NoPlan:
    """All structures stay."""

    needs_calibration = False

    def plan(self, view: StructureView) -> Plan:
        return Plan()
