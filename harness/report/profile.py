"""Performance profiles: the share of cells that a competitor has within a factor of the best (Dolan and Moré 2002)."""

from __future__ import annotations

import math

import pandas as pd


def factors(losses: pd.DataFrame) -> pd.DataFrame:
    """Each loss over the best of its cell (cells × competitors); infinite where it, or every one, is not finite."""
    return losses.div(losses.min(axis=1), axis=0).fillna(math.inf)


def profile(losses: pd.DataFrame) -> pd.DataFrame:
    """The steps of every competitor's profile.

    A cell that collapsed counts as one that is beyond every factor, however far: no mean is drawn to it.

    Returns:
        The columns competitor, factor and share, a row wherever a share changes; `share` is that of all cells.
    """
    rows = []
    for name, values in factors(losses).items():
        finite = values[values < math.inf].sort_values()
        shares = finite.groupby(finite).size().cumsum() / len(losses)
        rows += [{"competitor": name, "factor": factor, "share": share} for factor, share in shares.items()]
    return pd.DataFrame(rows, columns=["competitor", "factor", "share"])
