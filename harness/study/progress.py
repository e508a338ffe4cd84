"""Lines of a sweep while it runs, and the table at its end."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

from harness.record.schema import Record
from harness.report.numbers import duration, line, seconds
from harness.runtime import escape
from harness.runtime.errors import UserError

K = TypeVar("K")


class SweepProgress(Generic[K]):
    """How many of the points of a sweep are done, and how long the others will take at this pace.

    Args:
        labels: of the points, by their keys.
    """

    def __init__(self, labels: Mapping[K, str]) -> None:
        self._labels = dict(zip(labels, varying(list(labels.values())), strict=True))
        self._began = time.monotonic()
        self._done = self._made = 0

    def ended(self, key: K, record: Record, *, is_new: bool) -> str:
        """The line of a point that has ended.

        Args:
            is_new: it was run here; one whose record was found says nothing of the pace.
        """
        self._done += 1
        self._made += is_new
        said = f"[{self._done}/{len(self._labels)}] {self._labels[key]}: {record.status}"
        if record.status == "ok":
            said += f" in {seconds(record):.1f} s ({line(record)})"
        left = len(self._labels) - self._done
        if left and self._made:
            said += f"; about {duration((time.monotonic() - self._began) / self._made * left)} left"
        return escape.terminal(said)


def varying(labels: Sequence[str]) -> list[str]:
    """Labels without the words that all of them share."""
    words = [label.split(" ") for label in labels]
    shared = set.intersection(*map(set, words)) if len(words) > 1 else set()
    return [
        " ".join(word for word in of_one if word not in shared) or label
        for of_one, label in zip(words, labels, strict=True)
    ]


def show_table(records: Sequence[Record]) -> None:
    """Print the measures of a sweep's points to standard error, a row for each, means over seeds."""
    from harness.report.outputs import lay
    from harness.report.sweep import Wish, cells_of, subject_of
    from harness.report.tables import markdown_lines

    if len(records) < 2:
        return
    cells = cells_of(records)
    try:
        shown = lay(subject_of(cells, Wish(), "sweep"), cells)
    except UserError as error:  # of unlike protocols (a sweep over evaluation_limit, say): the points stand above
        print(f"no table: {error}", file=sys.stderr, flush=True)
        return
    print("\n".join(["", *markdown_lines(shown.table), ""]), file=sys.stderr, flush=True)
