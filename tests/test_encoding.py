"""Text is UTF-8 whatever the locale says: whoever opens some names the encoding."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for folder in ("harness", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
READERS = {"read_text": 0, "write_text": 1}
"""Methods of paths that take text, and the position at which they take its encoding."""
OPENERS = {"open": (1, 0), "fdopen": (1, 1), "NamedTemporaryFile": (0, 0), "TemporaryFile": (0, 0)}
"""What opens a file, and where it takes the mode: as a function of a module or builtin, and as a method of a path."""
HAVE_NO_TEXT = ("tarfile", "zipfile", "archive", "Image", "webbrowser", "os")
"""Modules, and an opened archive, whose `open` is another one."""


def without_encoding(source: str) -> Iterator[int]:
    """The lines on which text is read or written in the locale's encoding."""
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        named = {keyword.arg: keyword.value for keyword in call.keywords}
        method = isinstance(call.func, ast.Attribute)
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        of = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
        if "encoding" in named:
            continue
        if name in READERS and len(call.args) <= READERS[name]:
            yield call.lineno
        elif name in OPENERS and not (name == "open" and of in HAVE_NO_TEXT):
            position = OPENERS[name][method]
            mode = named.get("mode") or next(iter(call.args[position : position + 1]), None)
            given = mode.value if isinstance(mode, ast.Constant) and isinstance(mode.value, str) else None
            binary = "b" in given if given is not None else mode is None and name.endswith("TemporaryFile")
            if not binary:
                yield call.lineno
        elif named.keys() & {"text", "universal_newlines"} and name in ("run", "Popen", "check_output"):
            yield call.lineno


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_text_is_utf8_whatever_the_locale(path: Path) -> None:
    assert not list(without_encoding(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "source",
    ["p.read_text()", "p.write_text(t)", "open(p)", "open(p, 'w')", "p.open()", "p.open('a')", "os.fdopen(3)",
     "subprocess.run(c, text=True)"],
)  # fmt: skip
def test_what_is_found(source: str) -> None:
    assert list(without_encoding(source)) == [1]


@pytest.mark.parametrize(
    "source", ["p.read_text('utf-8')", "p.open('rb')", "os.fdopen(3, 'wb')", "os.open(p, flags)", "open(p, mode='rb')"]
)
def test_what_is_none(source: str) -> None:
    assert not list(without_encoding(source))
