"""Components' values, as a record can hold them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from typing import Any


def plain(value: Any) -> Any:
    """A value as JSON has it, so that no fact that is told costs the numbers that were measured.

    Numbers that are not finite are None, tensors and arrays lists (or numbers); what is of no such type is its text.
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | Set):
        return [plain(one) for one in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return plain(str(value))
