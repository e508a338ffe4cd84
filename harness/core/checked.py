"""Checks of components' results before they are used: a plugin's mistake is one sentence that names the component."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor

from harness.core.allocation import Allocation
from harness.core.causes import Counts
from harness.core.cost import check
from harness.core.geometry import Geometry
from harness.core.interfaces import Pruned
from harness.core.pattern import NofM, Unstructured
from harness.core.structure import SUBLAYERS, Cut, Part, Plan, Unit
from harness.runtime.errors import Failure

T = TypeVar("T")
FEW = 3
"""Names in a sentence."""


def pruned(method: str, site: str, result: Any, weight: Tensor) -> Pruned:
    """A result of the method of this name for a weight (O, I), of the right form.

    Raises:
        Failure: it is not.
    """
    if not isinstance(result, Pruned):
        raise _not(method, f"returned {_what(result)} for {site}", "Pruned(weight, kept)")
    for name, tensor, dtype in (("weight", result.weight, weight.dtype), ("kept", result.kept, torch.bool)):
        if not isinstance(tensor, Tensor):
            raise _not(method, f"returned {_what(tensor)} as {name} of {site}", "a tensor")
        if tensor.shape != weight.shape:
            raise _not(method, f"returned {name} of {site} as {list(tensor.shape)}", f"the shape {list(weight.shape)}")
        if tensor.dtype != dtype:
            raise _not(method, f"returned {name} of {site} as {_short(tensor.dtype)}", f"{_short(dtype)}")
        if tensor.device != weight.device:
            raise _not(method, f"returned {name} of {site} on {tensor.device}", f"the weight's device {weight.device}")
    if not isinstance(result.note, str):
        raise _not(method, f"returned {_what(result.note)} as note of {site}", "a text")
    _check_aside(method, site, result, weight.shape[1])
    return result


def _check_aside(method: str, site: str, result: Pruned, width: int) -> None:
    """Look at what a method need not say."""
    for name, tensor, shape in (("ok", result.ok, []), ("unseen", result.unseen, [width])):
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor) or tensor.dtype != torch.bool or list(tensor.shape) != shape:
            raise _not(method, f"returned {_shape(tensor)} as {name} of {site}", f"None or a bool tensor {shape}")
    order = result.order
    if order is not None and not _is_permutation(order, width):
        raise _not(method, f"returned {_shape(order)} as order of {site}", f"None or the {width} inputs, each once,")


def _is_permutation(order: Any, width: int) -> bool:
    """Return whether it is a tensor of whole numbers that has each from 0 to `width` - 1 once."""
    if not isinstance(order, Tensor) or order.is_floating_point() or list(order.shape) != [width]:
        return False
    return torch.equal(order.sort().values, torch.arange(width, dtype=order.dtype, device=order.device))


def block(method: str, results: Any, weights: Mapping[str, Tensor]) -> dict[str, Pruned]:
    """Check the results of a method for all matrices of a block, by site.

    Raises:
        Failure: it is no such mapping, or one of its results has not the right form.
    """
    _check_sites(f"the method '{method}'", results, weights)
    return {site: pruned(method, site, results[site], weight) for site, weight in weights.items()}


def counts(method: str, found: Mapping[str, Counts]) -> None:
    """Look at what a method left of every matrix.

    Raises:
        Failure: weights are not finite, or are there though their mask says that they went.
    """
    for site, one in found.items():
        if one.broken:
            raise Failure(
                f"the method '{method}' left {one.broken} of {one.parameters} weights of {site} not finite (NaN or "
                "infinite); if the model and its calibration are finite, a wider dtype (dtype=float32) may be enough."
            )
        if one.masked:
            raise Failure(
                f"the method '{method}' left {one.masked} of {one.parameters} weights of {site} other than zero where "
                "its mask says that they went; kept has to be True where a weight stays."
            )


def allocation(allocator: str, answer: Any, sites: Iterable[str]) -> Allocation:
    """An allocator's answer: a pattern for every matrix in scope.

    Raises:
        Failure: it is none.
    """
    who = f"the allocator '{allocator}'"
    _check_sites(who, answer, dict.fromkeys(sites))
    for site, pattern in answer.items():
        if not isinstance(pattern, Unstructured | NofM):
            raise Failure(
                f"{who} gave {_what(pattern)} for {site}, where Unstructured(sparsity) or NofM(keep, of) is due."
            )
        whole = isinstance(pattern, Unstructured) or all(type(part) is int for part in (pattern.keep, pattern.of))
        try:
            number = isinstance(pattern.sparsity, int | float) and not isinstance(pattern.sparsity, bool)
            fine = whole and number and 0 <= pattern.sparsity <= 1
        except (TypeError, ZeroDivisionError):
            fine = False
        if not fine:
            raise Failure(f"{who} gave {pattern!r} for {site}, which is no fraction of zeros from 0 to 1.")
    return answer


def plan(planner: str, answer: Any, geometry: Geometry) -> Plan:
    """A planner's answer: units that the model has, and tensors.

    Raises:
        Failure: it is no plan.
        Refusal: the model has not what is to go, or nothing would be left.
    """
    who = f"the planner '{planner}'"
    if not isinstance(answer, Plan) or not isinstance(answer.edit, Cut):
        raise Failure(f"{who} returned {_what(answer)}, where Plan(Cut(units)) is due.")
    for unit in answer.edit.units:
        whole = isinstance(unit, Unit) and type(unit.block) is int and type(unit.index) is int
        if not whole or unit.part not in get_args(Part):
            raise Failure(f"{who} would cut {unit!r}, where Unit(part, block, index) is due.")
    for name, tensor in answer.tensors.items():
        if not isinstance(tensor, Tensor):
            raise Failure(f"{who} gave {_what(tensor)} as {name}, where a tensor is due.")
    for unit, shift in answer.shifts.items():
        if not isinstance(shift, Tensor) or list(shift.shape) != [geometry.hidden]:
            raise Failure(
                f"{who} gave {_shape(shift)} in place of {unit!r}, where a tensor [{geometry.hidden}] is due."
            )
        if unit.part not in ("block", *SUBLAYERS) or not Cut(frozenset({unit})) | answer.edit == answer.edit:
            raise Failure(f"{who} gave a constant in place of {unit!r}, which stays.")
    check(answer.edit, geometry)
    return answer


def decoder(conversion: str, answer: Any, kind: type[T]) -> T:
    """A conversion's answer.

    Raises:
        Failure: it is no decoder.
    """
    if not isinstance(answer, kind):
        raise Failure(f"the conversion '{conversion}' returned {_what(answer)}, where a {kind.__name__} is due.")
    return answer


def _check_sites(who: str, answer: Any, sites: Mapping[str, Any]) -> None:
    if not isinstance(answer, Mapping):
        raise Failure(f"{who} returned {_what(answer)}, where a mapping from every matrix to its answer is due.")
    missing, unknown = [site for site in sites if site not in answer], [site for site in answer if site not in sites]
    if missing:
        raise Failure(f"{who} gave nothing for {_some(missing)}; every matrix in scope needs an answer.")
    if unknown:
        raise Failure(f"{who} gave an answer for {_some(unknown)}, of which nothing was asked.")


def _not(method: str, did: str, due: str) -> Failure:
    return Failure(f"the method '{method}' {did}, where {due} is due.")


def _what(value: Any) -> str:
    """A value by its type: `a Tensor`, `None`."""
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[:1] in 'AEIOUaeiou' else 'a'} {name}"


def _shape(value: Any) -> str:
    return f"{_short(value.dtype)} {list(value.shape)}" if isinstance(value, Tensor) else _what(value)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _some(names: list[Any]) -> str:
    rest = f" and {len(names) - FEW} more" if len(names) > FEW else ""
    return ", ".join(map(str, names[:FEW])) + rest
