"""Where the project's own files lie: in a checkout beside the package, in an installed wheel within it."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent.parent
IS_INSTALLED = (PACKAGE / "conf").is_dir()
"""True if the package was built; a checkout has `conf/` beside `harness/`, an editable install uses it."""
ROOT = PACKAGE.parent
"""The checkout. Of an installed package it is no place for anything."""
CONF = PACKAGE / "conf" if IS_INSTALLED else ROOT / "conf"
REPORTED = PACKAGE / "reported" if IS_INSTALLED else ROOT / "benchmarks" / "reported"
"""The numbers that papers print."""
