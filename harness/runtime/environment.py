"""Environment variables that a library cannot read: found behind its exception, so that they are said by name."""

from __future__ import annotations

import linecache
import os
import re
import traceback

AROUND = 2
"""Lines before and behind a frame's that may belong to the same statement."""


def blamed(error: BaseException) -> str | None:
    """One sentence on the variables that are set and named where a library raised this, or None if there are none.

    Of several, those are meant whose value the library quotes.
    """
    named: list[str] = []
    for frame, line in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__", "").partition(".")[0] in ("harness", "importlib", "__main__"):
            continue
        file = frame.f_code.co_filename
        text = "".join(linecache.getline(file, at) for at in range(line - AROUND, line + AROUND + 1))
        named += [name for name in re.findall(r"[\"']([A-Z][A-Z0-9_]+)[\"']", text) if os.environ.get(name)]
    quoted = [name for name in named if re.search(rf"(?<!\w){re.escape(os.environ[name])}(?!\w)", str(error))]
    if not quoted:
        return None
    settings = " and ".join(f"{name}={os.environ[name]}" for name in dict.fromkeys(quoted))
    return f"a library cannot read {settings} of the environment: {str(error).rstrip('.')}."
