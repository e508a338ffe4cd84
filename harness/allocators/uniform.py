"""Uniform allocation: every site the same."""

from __future__ import annotations

from dataclasses import dataclass

from harness.catalogue import component
from harness.core.allocation import Allocation, Budget
from harness.core.interfaces import ModelView
from harness.core.pattern import NofM, Unstructured


@component("allocator", "uniform")
@dataclass(frozen=True)
class Uniform:
    """The budget at every site; with an N:M budget, N of M at every site."""

    needs_calibration = False

    def allocate(self, view: ModelView, budget: Budget) -> Allocation:
        if budget.of is None:
            return dict.fromkeys(view.shapes, Unstructured(budget.sparsity))
        return dict.fromkeys(view.shapes, NofM(round((1 - budget.sparsity) * budget.of), budget.of))
