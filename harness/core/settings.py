"""Settings of components: which types a command line can give, and values of these types."""

from __future__ import annotations

import inspect
import math
import types
import typing
from typing import Any

from harness.runtime.errors import UserError, unknown

SETTINGS = "bool, int, float, str, Literal, list or tuple of these, a union of these with None, or Any"


def is_setting(hint: Any) -> bool:
    """Return whether `coerced` can check values of this type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in (Any, bool, int, float, str, type(None)) or origin is typing.Literal:
        return True
    if origin in (types.UnionType, typing.Union):
        return all(map(is_setting, arguments))
    if origin in (tuple, list):
        return len({one for one in arguments if one is not Ellipsis}) == 1 and is_setting(arguments[0])
    return False


def coerced(where: str, value: Any, hint: Any) -> Any:
    """`value` as the annotated type of a field.

    Raises:
        UserError: it is none; the sentence says what was expected.
    """
    if hint is Any:
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        errors = []
        for option in (a for a in arguments if a is not type(None)):
            try:
                return coerced(where, value, option)
            except UserError as error:
                errors.append(error)
        raise errors[0]
    if origin is typing.Literal:
        if value in arguments:
            return value
        raise unknown(f"value of {where}:", value, map(str, arguments))
    if origin in (tuple, list):
        if not isinstance(value, list | tuple):
            raise UserError(f"{where}={value} has to be a list such as [0,1,2].")
        return origin(coerced(where, item, arguments[0]) for item in value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if hint is float and isinstance(value, float):
        raise UserError(f"{where}={value} has to be a finite number.")
    if inspect.isclass(hint) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise UserError(f"{where}={value} has to be of type {getattr(hint, '__name__', hint)}.")
