"""Single values of a configuration, checked: each a sentence where it cannot be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.core.errors import UserError, unknown


def offload(composed: Mapping[str, Any]) -> str:
    """Where blocks wait; on and off are true and false to YAML.

    Raises:
        UserError: it is not.
    """
    value = composed["offload"]
    return one_of({"offload": {True: "on", False: "off"}.get(value, value)}, "offload", ("auto", "on", "off"))


def folder(key: str, value: Any) -> Path:
    """A path from a folder's option.

    Raises:
        UserError: it is not.
    """
    if not value:
        raise UserError(f"{key}= needs a folder.")
    return Path(str(value)).expanduser()


def integer(composed: Mapping[str, Any], key: str) -> int:
    """A whole number.

    Raises:
        UserError: it is not.
    """
    value = composed[key]
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(f"{key}={value} has to be a whole number.")
    return value


def boolean(values: Mapping[str, Any], key: str) -> bool:
    """True or false.

    Raises:
        UserError: it is not.
    """
    if not isinstance(values[key], bool):
        raise UserError(f"{key}={values[key]} has to be true or false.")
    return values[key]


def positive(composed: Mapping[str, Any], key: str, least: int) -> int | None:
    """A whole number of at least `least`, or None.

    Raises:
        UserError: it is not.
    """
    if composed[key] is None:
        return None
    value = integer(composed, key)
    if value < least:
        raise UserError(f"{key}={value} has to be at least {least}.")
    return value


def amount(composed: Mapping[str, Any], key: str) -> float | None:
    """A number of at least 0, or None.

    Raises:
        UserError: it is not.
    """
    value = composed[key]
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0):
        raise UserError(f"{key}={value} has to be a number, at least 0, or null.")
    return value


def one_of(composed: Mapping[str, Any], key: str, options: tuple[str, ...]) -> str:
    """One of these options as text.

    Raises:
        UserError: it is not.
    """
    value = str(composed[key])
    if value not in options:
        raise unknown(f"value of {key}:", value, options)
    return value
