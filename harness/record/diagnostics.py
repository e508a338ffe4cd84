"""Diagnostics of a record's components, as far as reports read them: searches, verifications, training losses.

All else in `blocks` and `allocation` is the components' own, and nobody looks into it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

GENERATION = ("generation", "evaluations", "best", "mean")
UNIT = ("sensitivity", "loss")


def check_diagnostics(blocks: Mapping[str, Any], allocation: Mapping[str, Any]) -> None:
    """Look at everything that a table or a figure may show.

    Raises:
        ValueError, KeyError, TypeError: something has not the type that is written.
    """
    for index, facts in blocks.items():
        if not index.isdigit() or not isinstance(facts, dict):
            raise TypeError(f"blocks.{index[:20]} is no object under the number of a block")
        if facts.get("loss"):
            for value in _list("loss", facts["loss"]):
                _check_known("loss", value)
    if search := allocation.get("search"):
        _object("search", search)
        check_number("seconds", search["seconds"])
        check_number("evaluations", search["evaluations"])
        _text("objective", search["objective"])
        for generation in _list("generations", search["generations"]):
            _numbers("generation", generation, GENERATION)
    if verification := allocation.get("verification"):
        _object("verification", verification)
        _check_known("spearman", verification["spearman"])
        check_number("dense", verification["dense"])
        for unit in _list("units", verification["units"]):
            _numbers("unit", unit, UNIT)
            _text("unit", unit["unit"])
            _text("kind", unit["kind"])
    _object("sensitivity", allocation.get("sensitivity", {}))


def check_number(name: str, value: Any) -> None:
    """Look whether it is a finite number.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} is no finite number")


def _check_known(name: str, value: Any) -> None:
    if value is not None:
        check_number(name, value)


def _numbers(name: str, value: Any, keys: Iterable[str]) -> None:
    for key in keys:
        _check_known(f"{key} of a {name}", _object(name, value)[key])


def _object(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{name} is no object")
    return value


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{name} is no list")
    return value


def _text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} is no text")
