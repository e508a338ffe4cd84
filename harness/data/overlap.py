"""Overlap of a calibration text with an evaluation text."""

from __future__ import annotations

from functools import lru_cache

from harness.data.corpora import read_text
from harness.runtime.errors import UserError

LONG = 100
"""Characters from which on a row that two texts share is no coincidence (a heading, a formula)."""
ALLOWED = 0.01
"""The share of long rows that two texts may have in common: the same boilerplate, the same quotation."""


@lru_cache(maxsize=64)
def shared_rows(one: tuple[str, str], other: tuple[str, str]) -> float:
    """The fraction of the long rows of one (corpus, split) that are rows of the other."""
    rows = {row.strip() for row in read_text(*one).rows if len(row.strip()) >= LONG}
    if not rows:
        return 0.0
    return len(rows & {row.strip() for row in read_text(*other).rows}) / len(rows)


def refuse_overlap(
    calibration: tuple[str, str], evaluation: tuple[str, str], *, what: str = "calibration", advice: str = "calibrate"
) -> None:
    """Numbers on a text that a method, a search or a recovery has seen say nothing.

    Args:
        what: what the first text is for, and `advice` the verb for it.

    Raises:
        UserError: more than 1 % of the long rows of either are rows of the other.
    """
    same = calibration == evaluation  # even if it has no long rows
    shared = 1.0 if same else max(shared_rows(calibration, evaluation), shared_rows(evaluation, calibration))
    if shared > ALLOWED:
        raise UserError(
            f"the {what} text {calibration[0]} ({calibration[1]}) overlaps the evaluation text {evaluation[0]} "
            f"({evaluation[1]}): {shared:.0%} of the longer rows are the same; {advice} on another text or split."
        )
