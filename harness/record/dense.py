"""The one place that says which models were left as they were.

A model is dense if no method pruned it, no planner cut it, nothing converted it and no recovery trained it. Models that
no method pruned have no zeros asked of them, dense or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("method", "planner", "conversion", "recovery")
"""The kinds of components that change a model."""
BESIDE = KINDS[1:]
"""Those that records and tables name only where they do."""
NONE = "none"


def names_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Kind → name of the component of a configuration; a kind that older records do not know is `none`."""
    return {kind: str((config.get(kind) or {}).get("name", NONE)) for kind in KINDS}


def is_pruned(names: Mapping[str, Any]) -> bool:
    """Return whether a method pruned a model, of which these are the names, or a row of a table that holds them."""
    return bool(names["method"] != NONE)


def is_dense(names: Mapping[str, Any]) -> bool:
    """Return whether a model was left as it was; names that are not said are `none`."""
    return not is_pruned(names) and not any(changes(names, kind) for kind in BESIDE)


def changes(names: Mapping[str, Any], kind: str) -> bool:
    """Return whether the component of a kind besides methods changes a model."""
    return names.get(kind) not in (None, "", NONE)


def dense_rows(frame: pd.DataFrame) -> pd.Series[bool]:
    """Which rows of a table are of dense models."""
    dense = frame["method"] == NONE
    for kind in BESIDE:
        if kind in frame:
            dense &= frame[kind].isna() | frame[kind].isin(("", NONE))
    return dense


def name_of_row(row: Mapping[str, Any]) -> str:
    """Word for what was done to the model of a row: its method, or what changed it where none pruned it."""
    if is_dense(row):
        return "dense"
    return next(str(row[kind]) for kind in KINDS if kind in row and row[kind] not in ("", NONE))
