"""Achieved zeros, counted from the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from harness.core.pattern import PERMUTED, NofM, Pattern, satisfies
from harness.models.decoder import Decoder
from harness.models.loading import first_not_finite
from harness.models.placement import placement_of
from harness.runtime.errors import Failure


def fraction_of_zeros(decoder: Decoder, scope: Sequence[int] | None) -> float:
    """Zeros over parameters in the block matrices of `scope` (None: all blocks)."""
    zeros, total, placement = 0, 0, placement_of(decoder)
    for index in decoder.indices if scope is None else scope:
        with placement.on_device(decoder.block(index)):
            for linear in decoder.linears(index).values():
                zeros += int((linear.weight == 0).sum())
                total += linear.weight.numel()
    return zeros / total if total else 0.0


def achieved_sites(
    decoder: Decoder,
    scope: Sequence[int],
    asked: Mapping[str, Pattern],
    orders: Mapping[str, Tensor] | None = None,
) -> dict[str, dict[str, Any]]:
    """Per matrix in scope: the zeros asked for and achieved, and the pattern that every group obeys.

    Args:
        orders: the inputs (I,) of a matrix in the order in which its pattern holds, where that is not their own.
    """
    placement = placement_of(decoder)
    sites: dict[str, dict[str, Any]] = {}
    for index in scope:
        with placement.on_device(decoder.block(index)):
            for site, linear in decoder.linears(index).items():
                sites[site] = _facts(linear.weight.data, asked.get(site), (orders or {}).get(site))
    return sites


def check_healed(recovery: str, decoder: Decoder, scope: Sequence[int], kept: Mapping[str, Tensor]) -> None:
    """Look at what the recovery of this name made of the weights.

    Raises:
        Failure: weights are not finite, in scope or out of it, or zeros that the method left outside `kept` (O, I) are
            zeros no more.
    """
    if (name := first_not_finite(decoder, placement_of(decoder))) is not None:
        raise Failure(f"the recovery '{recovery}' left weights of {name} not finite.")
    placement = placement_of(decoder)
    for index in scope:
        with placement.on_device(decoder.block(index)):
            for site, linear in decoder.linears(index).items():
                weight = linear.weight.data
                if site in kept and (filled := int(((weight != 0) & ~kept[site].to(weight.device)).sum())):
                    raise Failure(f"the recovery '{recovery}' filled {filled} zeros of {site}, which have to stay.")


def _facts(weight: Tensor, pattern: Pattern | None, order: Tensor | None) -> dict[str, Any]:
    """A pattern that holds in the inputs' own order is named so, whatever else is known."""
    name = "unstructured"
    if isinstance(pattern, NofM):
        if satisfies(weight, pattern):
            name = str(pattern)
        elif order is not None and satisfies(weight, pattern, order):
            name = f"{pattern}{PERMUTED}"
    return {
        "asked": pattern.sparsity if pattern else 0.0,
        "achieved": int((weight == 0).sum()) / weight.numel(),
        "parameters": weight.numel(),
        "pattern": name,
    }
