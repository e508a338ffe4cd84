"""Achieved zeros, counted from the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from harness.core.pattern import NofM, Pattern, satisfies
from harness.models.anatomy import Anatomy


def fraction_of_zeros(model: nn.Module, anatomy: Anatomy, scope: range | None) -> float:
    """Zeros over parameters in the block matrices of `scope` (None: all blocks)."""
    zeros = total = 0
    for index in range(len(anatomy.block_list(model))) if scope is None else scope:
        for linear in anatomy.block_linears(model, index).values():
            zeros += int((linear.weight == 0).sum())
            total += linear.weight.numel()
    return zeros / total if total else 0.0


def achieved_sites(
    model: nn.Module, anatomy: Anatomy, scope: range, asked: Mapping[str, Pattern]
) -> dict[str, dict[str, Any]]:
    """Per matrix in scope: the zeros asked for and achieved, and the pattern that every group obeys."""
    sites: dict[str, dict[str, Any]] = {}
    for index in scope:
        for site, linear in anatomy.block_linears(model, index).items():
            pattern = asked.get(site)
            holds = isinstance(pattern, NofM) and satisfies(linear.weight.data, pattern)
            sites[site] = {
                "asked": pattern.sparsity if pattern else 0.0,
                "achieved": int((linear.weight == 0).sum()) / linear.weight.numel(),
                "parameters": linear.weight.numel(),
                "pattern": str(pattern) if holds else "unstructured",
            }
    return sites
