"""Published tables and figures follow from the published records, byte for byte.

Two small studies; HARNESS_PUBLISHED=all (make test-published) is every study at every scale, a minute.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.core.places import ROOT
from harness.record import schema

PUBLISHED = ROOT / "results" / "published"
ALL = sorted(str(path.parent.relative_to(PUBLISHED)) for path in PUBLISHED.glob(f"*/*/{schema.PACKED}"))
CHOSEN = ALL if os.environ.get("HARNESS_PUBLISHED") == "all" else ["isc_table2/embedded", "msp_sensitivity/embedded"]


def test_published_records_are_packed() -> None:
    folders = sorted(str(path.relative_to(PUBLISHED)) for path in PUBLISHED.glob("*/*") if path.is_dir())
    assert folders == ALL and set(CHOSEN) <= set(ALL)
    assert not list(PUBLISHED.rglob("*.json"))


@pytest.mark.parametrize("place", CHOSEN)
def test_packing_what_was_unpacked_gives_the_same_bytes(place: str, tmp_path: Path) -> None:
    """A file packed on another day, from records in another order."""
    packed = PUBLISHED / place / schema.PACKED
    schema.pack(list(schema.unpack(packed))[::-1], tmp_path / schema.PACKED)
    assert (tmp_path / schema.PACKED).read_bytes() == packed.read_bytes()


@pytest.mark.parametrize("place", CHOSEN)
def test_tables_and_figures_follow_from_the_records(place: str, typed: Callable, tmp_path: Path) -> None:
    study, _, scale = place.partition("/")
    (tmp_path / "records").mkdir()
    shutil.copy(PUBLISHED / place / schema.PACKED, tmp_path / "records")
    done = typed("tables", f"study={study}", f"scale={scale}", f"records={tmp_path / 'records'}")
    assert done.status == 0, done.err
    made = tmp_path / "tables" / place
    kept = {path.name for path in (PUBLISHED / place).iterdir()} - {schema.PACKED}
    assert {path.name for path in made.iterdir()} == kept
    for name in sorted(kept):
        ours, theirs = (made / name).read_bytes(), (PUBLISHED / place / name).read_bytes()
        if name.endswith(".svg"):
            ours, theirs = _drawing(ours), _drawing(theirs)
        if not name.endswith(".png"):  # the same drawing; fonts are rasterised as the machine's libraries do it
            assert ours == theirs, name


def _drawing(svg: bytes) -> bytes:
    """Coordinates to a thousandth of a point, and no names, which are hashes of coordinates.

    Logarithms of two processors differ in the last digit that is written.
    """
    return re.sub(rb"\d+\.\d+", lambda number: b"%.3f" % float(number[0]), re.sub(rb"\b[a-z][0-9a-f]{10}\b", b"", svg))
