"""Files of a report: tables whose cells nobody takes for formulas, and texts; UTF-8 whatever the locale."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from harness.runtime import escape


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write a table without its index."""
    safe = frame.rename(columns=escape.csv)
    texts = [place for place, kind in enumerate(safe.dtypes) if not pd.api.types.is_numeric_dtype(kind)]
    for place in texts:
        safe.isetitem(place, [escape.csv(value) for value in safe.iloc[:, place]])
    safe.to_csv(path, index=False, encoding="utf-8")


def write_text(text: str, path: Path) -> None:
    """Write a text."""
    path.write_text(text, encoding="utf-8")
